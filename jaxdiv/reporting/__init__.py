"""The table of results, its pictures and report.html.

Results flow one way: `results` (results.csv), `summary`, then tables, `finding` and `pictures`,
then `page`.
To add a measure, see `measures`; to add a picture, see `pictures`.
"""
