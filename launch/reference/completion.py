"""`octavo completion`: the script by which bash, zsh and fish complete the words of `octavo`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from trainer.config.command_line import Parser, choice

# All ask the hidden command `octavo __complete LINE`, which prints whole words, one a line. bash has taken a word apart
# at its `=` by then, and wants what follows alone; fish adds no space behind `=` and `.` by itself.
SCRIPTS = {
    "bash": r"""_octavo() {
    local line=${COMP_LINE:0:COMP_POINT} IFS=$'\n'
    local word=${line##*[[:space:]]}
    local head=${word%"${word##*[=:]}"}
    [[ $COMP_WORDBREAKS == *=* ]] || head=
    COMPREPLY=($("${COMP_WORDS[0]}" __complete "$line" 2>/dev/null))
    [[ ${#COMPREPLY[@]} == 1 && ${COMPREPLY[0]} == *[=.] ]] && compopt -o nospace
    COMPREPLY=("${COMPREPLY[@]#"$head"}")
}
complete -o default -F _octavo octavo
""",
    "zsh": r"""#compdef octavo
_octavo() {
    local -a found
    found=("${(@f)$(${words[1]} __complete "${(j: :)words[1,CURRENT]}" 2>/dev/null)}")
    found=(${found:#})
    if (( ! $#found )); then
        compset -P '*='
        _files
        return
    fi
    compadd -S '' -- ${(M)found:#*[=.]}
    compadd -- ${found:#*[=.]}
}
compdef _octavo octavo
""",
    "fish": r"""function __octavo_words
    set -l words (commandline -opc)
    set -l found ($words[1] __complete (commandline -cp) 2>/dev/null)
    if test (string join '' -- $found) != ''
        printf '%s\n' $found
    else
        set -l current (commandline -ct)
        set -l head (string match -r '^.*=' -- $current)
        printf "$head%s\n" (__fish_complete_path (string replace -r '^.*=' '' -- $current))
    end
end
complete -c octavo -f -a '(__octavo_words)'
""",
}
WHERE = """To complete in every new shell, add one line to ~/.bashrc, ~/.zshrc or ~/.config/fish/config.fish:
  source <(octavo completion bash)
  source <(octavo completion zsh)       # below compinit
  octavo completion fish | source"""


def prepare(parser: Parser, words: Sequence[str]) -> Callable[[], int]:
    """Raises `CommandError`."""
    parser.epilog = WHERE
    parser.add_argument("shell", **choice(*SCRIPTS), help="the shell to write the script for")
    script = SCRIPTS[parser.read(words).shell]

    def work() -> int:
        print(script, end="")
        return 0

    return work
