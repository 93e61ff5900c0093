"""No statement is forgotten: whatever the sources hold is collected, and in every form."""

from __future__ import annotations

import textwrap

import pytest

from operations import query
from tests.sql import sources, statements

COLLECTED = statements.statements()


def literals(source: str) -> sources.Literals:
    return sources.Literals("room.module", textwrap.dedent(source))


@pytest.mark.parametrize("site", statements.sites())
def test_every_piece_of_sql_is_in_a_statement(site):
    """A new branch of a builder is not covered by the values so far: add one to statements.VALUES."""
    is_constant = statements.is_module(site)
    built = [statement.sql("p.d") for statement in COLLECTED if is_constant or statement.site == site]
    whole = "\n".join(f"{text}\n{[each.to_api_repr() for each in parameters]}" for text, parameters in built)
    held = [text for text in statements.sites()[site] if not is_constant or sources.is_sql(text)]
    strings = [part for text in held for part in text.split("{}")]
    assert [text for text in strings if len(text) > 1 and text not in whole] == []


def test_every_sql_file_is_a_query():
    files = list(sources.product_files(".sql"))
    assert sorted(path.stem for path in files) == query.names()
    for path in files:
        assert query.text(path.stem) == path.read_text(encoding="utf-8")


def test_every_place_that_sends_sql_sends_what_is_collected_or_given():
    """Hand over a parameter, or the call of a function that builds the statement."""
    builders = {statement.site.rpartition(".")[2] for statement in COLLECTED}
    sending = [place for literals in sources.product() for place in literals.sending]
    assert len(sending) >= 6
    assert [place for place in sending if place.builder is None or place.builder not in {"", *builders}] == []


@pytest.mark.parametrize(
    "source",
    [
        'def f(client): return client.query("SELECT 1")',
        'def f(client, d):\n sql = f"SELECT * FROM `{d}.t`"\n return client.query(sql)',
        "def f(client):\n sql = open('x').read()\n return client.query_and_wait(sql)",
        "def f(view):\n view.view_query = ' '.join(words)",
        "def f(make, limit):\n return make(row_restriction=f'Amount > {limit}')",
    ],
)
def test_a_place_that_sends_anything_else_is_found(source):
    (place,) = literals(source).sending
    assert place.builder in (None, "join")


@pytest.mark.parametrize(
    "text",
    [
        "SELECT 1",
        "select * from `{}.scores`",
        "MERGE `{}.t` USING s ON TRUE WHEN MATCHED THEN DELETE",
        "INSERT INTO t VALUES (1)",
        "WITH a AS (SELECT 1) ",
        " WHERE stage = @stage",
        "GRANT `r` ON SCHEMA d TO 'x'",
        "TRUNCATE TABLE t",
        "UPDATE t SET a = 1",
        "CALL BQ.ABORT_SESSION()",
    ],
)
def test_a_function_that_holds_sql_is_found(text):
    source = f'''
        def build(dataset):
            """SELECT in a docstring is prose."""
            return f"""{text.replace("{}", "{dataset}")}"""
    '''
    assert literals(source).strings == {"room.module.build": [text]}
    assert sources.holders(literals(source)) == {"room.module.build": [text]}


@pytest.mark.parametrize("text", ["DELETE", "curl -X DELETE URL", "Select one from the list", "FROMAGE"])
def test_prose_is_no_sql(text):
    assert sources.holders(literals(f"def f(): return {text!r}")) == {}


def test_a_function_that_holds_sql_must_be_callable_with_known_values(monkeypatch):
    def build(dataset: str, unheard_of: int) -> str:
        return f"SELECT {unheard_of} FROM `{dataset}.t`"

    monkeypatch.setattr(statements, "new_builder", build, raising=False)
    with pytest.raises(LookupError, match="add what its parameter 'unheard_of' can be to VALUES"):
        list(statements.variants("tests.sql.statements.new_builder"))
    monkeypatch.setitem(statements.VALUES, "unheard_of", (1, 2))
    texts = [each.sql("p.d")[0] for each in statements.variants("tests.sql.statements.new_builder")]
    assert texts == ["SELECT 1 FROM `p.d.t`", "SELECT 2 FROM `p.d.t`"]
    monkeypatch.setattr(statements, "new_builder", "SELECT 1")
    with pytest.raises(LookupError, match="build the statement in a function of its own"):
        list(statements.variants("tests.sql.statements.new_builder"))


def test_examples_of_a_page_are_collected():
    page = textwrap.dedent("""
        Look with

        ```sql
        SELECT 1;
        ```

            bq query --use_legacy_sql=false \\
                'GRANT `r` ON SCHEMA `p.d` TO "user:a@b"'
            local_bq query 'SELECT 2'
            python -m pipelines.batch --input_query="SELECT * FROM \\`$PROJECT.d.t\\`" --row_filter='V1 > 0'
    """).replace("\\`", "`")
    texts = [(example.sql.strip(), example.condition) for example in sources.examples(page, "page")]
    assert texts == [
        ("SELECT 1;", False),
        ('GRANT `r` ON SCHEMA `p.d` TO "user:a@b"', False),
        ("SELECT 2", False),
        ("SELECT * FROM `my-project.d.t`", False),
        ("V1 > 0", True),
    ]
    assert sources.unseen(page) is None
    assert sources.unseen(f"{page}\nThen run DELETE FROM t.") == "DELETE FROM t."


def test_every_statement_of_a_page_is_collected():
    pages = statements.pages()
    assert len(pages) > 5
    assert {
        page.name: left for page in pages if (left := sources.unseen(page.read_text(encoding="utf-8")))
    } == {}


def test_sketches_are_no_statements():
    (sketch,) = sources.examples("--input_query='SELECT ... AS V1'", "")
    assert sketch.is_sketch
