"""The bodies of requests and responses, one module per subject; they are also what /openapi.json says.

They know nothing about models, engines or routes.
"""
