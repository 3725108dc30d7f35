"""The comparison page: run directories in, tables, figures and one self-contained HTML file out. Never imports torch.

arms.py         which runs are seeds of one arm, what the arms differ in, what they are called
metrics.py      probe keys, and their values per seed and per prompt
inference.py    differences with intervals, Holm      matched.py  values at a matched x
stats.py        means over seeds with t-intervals     claims.py   which difference may be called higher or lower
checks.py       what makes a comparison unsound       diagnostics.py  alarms and events per arm
tables.py       the summary     pairs.py   arm against arm     levels.py  arms at one KL, at one number of tokens
findings.py     all of these together                 glance.py   five questions answered from them
gallery.py      which figures there are   curves.py   their points   figures.py  how they are drawn
samples.py      completions side by side
page.py, views.py, page.*     the page                markdown.py  the same as Markdown
"""
