"""BigQuery's SQL as the settings of ZetaSQL: language features, kinds of statements, functions and options.

A feature that is not listed here is off, so that a statement which needs it is refused. The list is that of
Google's own toolkit for BigQuery (GoogleCloudPlatform/zetasql-toolkit, BigQueryLanguageOptions). It goes
without what the manual of BigQuery does not describe: anonymization, nanoseconds, grouped rows, flattening.
It has what the manual describes since: more functions of JSON, ranges, pipes, set operations by name,
`array[0]`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from zetasql.types import (
    AllowedHintsAndOptions,
    FunctionSignatureId,
    LanguageFeature,
    LanguageOptions,
    NameResolutionMode,
    ProductMode,
    ResolvedNodeKind,
    Type,
    TypeKind,
    ZetaSQLBuiltinFunctionOptions,
)

_FEATURES: Final = """
ADDITIONAL_STRING_FUNCTIONS ALLOW_DASHES_IN_TABLE_NAME ALLOW_MISSING_PATH_EXPRESSION_IN_ALTER_DDL
ALLOW_REGEXP_EXTRACT_OPTIONALS ALTER_COLUMN_SET_DATA_TYPE ALTER_TABLE_RENAME_COLUMN ANALYTIC_FUNCTIONS
ANNOTATION_FRAMEWORK BARE_ARRAY_ACCESS BIGNUMERIC_TYPE BY_NAME CASE_STMT CBRT_FUNCTIONS CIVIL_TIME
COLLATION_SUPPORT COLUMN_DEFAULT_VALUE CONCAT_MIXED_TYPES CORRESPONDING CREATE_EXTERNAL_TABLE_WITH_CONNECTION
CREATE_EXTERNAL_TABLE_WITH_PARTITION_COLUMNS CREATE_EXTERNAL_TABLE_WITH_TABLE_ELEMENT_LIST
CREATE_MATERIALIZED_VIEW_CLUSTER_BY CREATE_MATERIALIZED_VIEW_PARTITION_BY CREATE_SNAPSHOT_TABLE
CREATE_TABLE_AS_SELECT_COLUMN_LIST CREATE_TABLE_CLONE CREATE_TABLE_CLUSTER_BY CREATE_TABLE_COPY
CREATE_TABLE_FIELD_ANNOTATIONS CREATE_TABLE_FUNCTION CREATE_TABLE_LIKE CREATE_TABLE_NOT_NULL
CREATE_TABLE_PARTITION_BY CREATE_VIEW_WITH_COLUMN_LIST DATE_ARITHMETICS DATE_TIME_CONSTRUCTORS DECIMAL_ALIAS
DML_UPDATE_WITH_JOIN ENCRYPTION EXTENDED_DATE_TIME_SIGNATURES EXTENDED_GEOGRAPHY_PARSERS FOREIGN_KEYS
FORMAT_IN_CAST FOR_IN FOR_SYSTEM_TIME_AS_OF GEOGRAPHY GROUPING_BUILTIN GROUPING_SETS GROUP_BY_ALL
GROUP_BY_ROLLUP HAVING_IN_AGGREGATE INTERVAL_TYPE IS_DISTINCT JSON_ARRAY_FUNCTIONS JSON_CONSTRUCTOR_FUNCTIONS
JSON_KEYS_FUNCTION JSON_LAX_VALUE_EXTRACTION_FUNCTIONS JSON_MUTATOR_FUNCTIONS JSON_TYPE
JSON_VALUE_EXTRACTION_FUNCTIONS LIKE_ANY_SOME_ALL LIMIT_IN_AGGREGATE NAMED_ARGUMENTS
NULLS_FIRST_LAST_IN_ORDER_BY NULL_HANDLING_MODIFIER_IN_AGGREGATE NULL_HANDLING_MODIFIER_IN_ANALYTIC
NUMERIC_TYPE OMIT_INSERT_COLUMN_LIST ORDER_BY_IN_AGGREGATE PARAMETERIZED_TYPES PARAMETERS_IN_GRANTEE_LIST
PIPES PIVOT QUALIFY RANGE_TYPE REMOTE_FUNCTION REMOTE_MODEL REPEAT ROUND_WITH_ROUNDING_MODE SAFE_FUNCTION_CALL
SCRIPT_LABEL SELECT_STAR_EXCEPT_REPLACE TABLESAMPLE TABLE_VALUED_FUNCTIONS TEMPLATE_FUNCTIONS
TIME_BUCKET_FUNCTIONS UNENFORCED_PRIMARY_KEYS UNPIVOT WEEK_WITH_WEEKDAY WITH_EXPRESSION WITH_ON_SUBQUERY
WITH_RECURSIVE
"""

_STATEMENTS: Final = """
ALTER_MATERIALIZED_VIEW ALTER_MODEL ALTER_SCHEMA ALTER_TABLE ALTER_VIEW ASSERT ASSIGNMENT AUX_LOAD_DATA BEGIN
CALL COMMIT CREATE_EXTERNAL_TABLE CREATE_FUNCTION CREATE_INDEX CREATE_MATERIALIZED_VIEW CREATE_MODEL
CREATE_PROCEDURE CREATE_ROW_ACCESS_POLICY CREATE_SCHEMA CREATE_SNAPSHOT_TABLE CREATE_TABLE
CREATE_TABLE_AS_SELECT CREATE_TABLE_FUNCTION CREATE_VIEW DELETE DROP DROP_FUNCTION DROP_MATERIALIZED_VIEW
DROP_ROW_ACCESS_POLICY DROP_SNAPSHOT_TABLE DROP_TABLE_FUNCTION EXECUTE_IMMEDIATE EXPORT_DATA EXPORT_MODEL
GRANT INSERT MERGE QUERY REVOKE ROLLBACK TRUNCATE UPDATE
"""

_LACKING: Final = """
aead.envelope_decrypt_bytes aead.envelope_decrypt_string aead.envelope_encrypt apply approx_cosine_distance
approx_dot_product approx_euclidean_distance array_filter array_first_n array_includes array_includes_all
array_includes_any array_is_distinct array_last_n array_max array_min array_remove_first_n array_remove_last_n
array_transform dot_product elementwise_avg elementwise_sum flatten iferror is_first is_last iserror l1_norm
l2_norm manhattan_distance nulliferror range_is_end_unbounded range_is_start_unbounded regexp_extract_groups
safe_to_json split_substr st_askml st_dumppoints st_geogfromkml st_nearest_neighbors st_unaryunion
timestamp_from_unix_micros timestamp_from_unix_millis timestamp_from_unix_seconds to_seconds_interval
zstd_compress zstd_decompress_to_bytes zstd_decompress_to_string
"""
LACKING: Final = frozenset(_LACKING.split())
"""Functions of ZetaSQL that the manual of BigQuery does not list."""

VIEW_OPTIONS: Final = {
    "description": TypeKind.TYPE_STRING,
    "friendly_name": TypeKind.TYPE_STRING,
    "expiration_timestamp": TypeKind.TYPE_TIMESTAMP,
    "model_type": TypeKind.TYPE_STRING,
    "model_path": TypeKind.TYPE_STRING,
    "endpoint": TypeKind.TYPE_STRING,
}
"""Options of a table, view or model that the product may set; another name is refused."""


def language() -> LanguageOptions:
    """BigQuery's language."""
    return LanguageOptions(
        name_resolution_mode=NameResolutionMode.NAME_RESOLUTION_DEFAULT,
        product_mode=ProductMode.PRODUCT_EXTERNAL,
        enabled_language_features=[LanguageFeature[f"FEATURE_{name}"] for name in _FEATURES.split()],
        supported_statement_kinds=[ResolvedNodeKind[f"RESOLVED_{name}_STMT"] for name in _STATEMENTS.split()],
        reserved_keywords=["QUALIFY"],
    )


def functions(known: Mapping[str, Sequence[int]]) -> ZetaSQLBuiltinFunctionOptions:
    """BigQuery's functions: those that ZetaSQL knows, by name with the ids of their forms, less LACKING."""
    lacking = [FunctionSignatureId(number) for name in LACKING for number in known[name]]
    return ZetaSQLBuiltinFunctionOptions(language_options=language(), exclude_function_ids=lacking)


def view_options() -> AllowedHintsAndOptions:
    """The options of statements, by name and type."""
    return AllowedHintsAndOptions(
        disallow_unknown_options=True,
        disallow_duplicate_option_names=True,
        option=[
            AllowedHintsAndOptions.Option(name=name, type=Type(type_kind=kind))
            for name, kind in VIEW_OPTIONS.items()
        ],
    )
