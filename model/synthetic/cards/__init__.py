"""Raw card payments of accounts with habits of their own, and planted frauds among them.

`places` holds countries, categories and merchants, `accounts` the habits, `payments` draws by them,
`frauds` plants, and `generator` makes the stream of it.
"""
