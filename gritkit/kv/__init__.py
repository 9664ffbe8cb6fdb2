"""Key-values that outlive a forward call: of documents (``dockv``, ``blocks``) and of running generations (``slots``).

Nothing here knows about models, prompts or retrieval.
"""
