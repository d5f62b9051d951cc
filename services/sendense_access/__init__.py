"""Tokens, agents' enrolment and the audit log: who may do what, and who did.

The only signer of tokens and the single writer of the audit log's hash chain. It never sees backup data.
"""
