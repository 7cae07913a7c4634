"""Biology-Instructions: 21 tasks on DNA, RNA, proteins and pairs of sequences."""
