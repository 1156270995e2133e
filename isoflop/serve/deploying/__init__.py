"""What is deployed, as the project's ledger says, so that every server of the project follows the same.

records.py     a deployment, and what a server says that it does about it
quality.py     is an artifact worse than the one that serves, by the ledger's rows
changing.py    deploy, promote, roll back: each writes one record
waiting.py     until the servers that run have done it
status.py      what is deployed, who follows, what users say of canary and main
following.py   in a server: opens what is deployed beside what serves, and then changes to it
"""
