"""Studies: a question as interviewers ask it, the runs that answer it, and a verdict by a rule declared beforehand."""
