import csv, datetime, decimal, json, math, struct, sys, uuid
import pyarrow as pa, pyarrow.compute as pc, pyarrow.parquet as pq

decimal.getcontext().prec = 60
part, folder = sys.argv[1], sys.argv[2]
csv.field_size_limit(1 << 30)


def fail(*what):
    print(*what)
    sys.exit(1)


def types():
    schema = pq.read_schema(folder + "/rows.parquet")
    want = {
        "id": "int64", "small": "int16", "int": "int32", "big": "int64", "f4": "float", "f8": "double",
        "dec9": "decimal128(9, 2)", "dec18": "decimal128(18, 4)", "dec38": "decimal128(38, 10)", "dec20": "decimal128(20, 0)",
        "num": "string", "flag": "bool", "words": "string", "code": "string", "raw": "binary", "day": "date32[day]",
        "clock": "time64[us]", "local": "timestamp[us]", "instant": "timestamp[us, tz=UTC]", "ref": "extension<arrow.uuid>",
        "doc": "extension<arrow.json>", "list": "extension<arrow.json>", "span": "string",
    }
    got = {f.name: str(f.type) for f in schema}
    for name, t in want.items():
        if got.get(name) != t:
            fail("column", name, "is", got.get(name), "and not", t)
    if list(got) != list(want):
        fail("the columns are", list(got))
    physical = {c.name: (c.physical_type, str(c.logical_type)) for c in pq.ParquetFile(folder + "/rows.parquet").schema}
    for name, t in {"dec9": "INT32", "dec18": "INT64", "dec38": "FIXED_LEN_BYTE_ARRAY"}.items():
        if physical[name][0] != t:
            fail("column", name, "is kept as", physical[name])
    if "isAdjustedToUTC=false" not in physical["local"][1] or "isAdjustedToUTC=true" not in physical["instant"][1]:
        fail("timestamps are", physical["local"], physical["instant"])


def text_of_time(text):  # PostgreSQL leaves zeros out
    head, _, fraction = text.partition(".")
    return head + "." + fraction.ljust(6, "0")


def span(text):  # of interval, for comparing: nothing is summed over days or months here
    h, m, s = text.split(":")
    return decimal.Decimal(h) * 3600 + decimal.Decimal(m) * 60 + decimal.Decimal(s)


def span_iso(text):  # PT5H4M6.5S
    seconds, number = decimal.Decimal(0), ""
    for c in text[2:]:
        if c in "HMS":
            seconds += decimal.Decimal(number) * {"H": 3600, "M": 60, "S": 1}[c]
            number = ""
        else:
            number += c
    return seconds


def number(text, bits):
    f = float(text)
    return struct.unpack("f", struct.pack("f", f))[0] if bits == 32 and math.isfinite(f) else f


same = {
    **{c: lambda v, t: v == int(t) for c in ("id", "small", "int", "big")},
    **{c: lambda v, t: v == decimal.Decimal(t) and str(v.as_tuple().exponent) == str(decimal.Decimal(t).as_tuple().exponent) for c in ("dec9", "dec18", "dec38", "dec20")},
    "f4": lambda v, t: v == number(t, 32) or math.isnan(v) and t == "NaN",
    "f8": lambda v, t: v == number(t, 64) or math.isnan(v) and t == "NaN",
    **{c: lambda v, t: v == t for c in ("num", "words", "code")},
    "flag": lambda v, t: v == (t == "t"),
    "raw": lambda v, t: "\\x" + v.hex() == t,
    "day": lambda v, t: v.isoformat() == t,
    "clock": lambda v, t: v.strftime("%H:%M:%S.%f") == text_of_time(t),
    "local": lambda v, t: v.isoformat(" ", "microseconds") == text_of_time(t),
    "instant": lambda v, t: v.astimezone(datetime.timezone.utc).replace(tzinfo=None).isoformat(" ", "microseconds") == text_of_time(t.removesuffix("+00")),
    "ref": lambda v, t: (v if isinstance(v, uuid.UUID) else uuid.UUID(bytes=v)) == uuid.UUID(t),
    "doc": lambda v, t: json.loads(v) == json.loads(t),
    "list": lambda v, t: json.loads(v) == [None if x == "NULL" else int(x) for x in t[1:-1].split(",")],
    "span": lambda v, t: span_iso(v) == span(t),
}


def values():
    types()
    file = pq.ParquetFile(folder + "/rows.parquet")
    rows = nulls = 0
    with open(folder + "/rows.csv", newline="", encoding="utf-8") as f:
        source = csv.DictReader(f)
        for batch in file.read().sort_by("id").to_batches(20000):  # as the source's text
            columns = {name: batch.column(i).to_pylist() for i, name in enumerate(batch.schema.names)}
            for i in range(batch.num_rows):
                want = next(source)
                rows += 1
                for name, text in want.items():
                    v = columns[name][i]
                    if v is None:
                        nulls += 1
                        if text != "\\N":
                            fail("row", want["id"], name, "is null and not", text)
                    elif text == "\\N" or not same[name](v, text):
                        fail("row", want["id"], name, "is", repr(v), "and not", text)
        if next(source, None) is not None:
            fail("only", rows, "rows were written")
    groups, bounds = file.metadata.num_row_groups, 0
    for g in range(groups):
        table = file.read_row_group(g, columns=[c for c in same if c not in ("ref", "doc", "list", "flag")])
        for c in range(file.metadata.num_columns):
            meta = file.metadata.row_group(g).column(c)
            name, stats = meta.path_in_schema, meta.statistics
            if stats is None or stats.null_count != file.read_row_group(g, columns=[name]).column(0).null_count:
                fail("row group", g, name, "has another number of nulls than", stats)
            if name not in table.column_names or not stats.has_min_max:
                continue
            both = pc.min_max(table[name]).as_py()
            for what, says in {"min": stats.min, "max": stats.max}.items():
                is_ = both[what]
                if name in ("words", "num", "code", "raw"):  # by bytes, and large ones are cut off
                    says, is_ = says.encode() if isinstance(says, str) else says, is_.encode() if isinstance(is_, str) else is_
                if says != is_ and not (isinstance(is_, float) and math.isnan(is_)):
                    fail("row group", g, what, "of", name, "is", is_, "and not", says)
                bounds += 1
    if groups < 2:
        fail("there is one row group: nothing is known of the second")
    print(f"values: pyarrow {pa.__version__} read {rows} rows of {len(same)} columns in {groups} row groups; every value and {nulls} nulls are PostgreSQL's, and {bounds} bounds of row groups are right")


def sums():
    import duckdb
    db = duckdb.connect()
    db.execute("set timezone = 'UTC'")
    db.execute(f"create view things as select * from read_parquet('{folder}/rows.parquet')")
    queries = {
        "rows": "count(*)", "nulls of words": "count(*) filter (words is null)", "sum of int": "sum(int)",
        "sum of big": "sum(big) filter (id > 0)", "sum of dec9": "sum(dec9)", "sum of dec18": "sum(dec18)",
        "sum of dec38": "sum(dec38) filter (id > 0)", "true flags": "count(*) filter (flag)", "first day": "min(day)",
        "last day": "max(day)", "last local": "max(local) filter (id > 0)", "different refs": "count(distinct ref)",
        "length of words": "sum(length(words))", "bytes of raw": "sum(octet_length(raw))",
    }
    where = {  # by what the file says of its row groups and pages too
        "dec38 below nothing": "dec38 < 0", "dec38 above much": "dec38 > 9000000000000000000000000::decimal(38,10)",
        "dec20 below much": "dec20 < -9000000000000000000", "words below m": "words < '8'",
        "instants after 2000": "instant >= timestamptz '2000-01-01 00:00+00' and id > 0",
    }
    n = 0
    with open(folder + "/sums.csv", newline="", encoding="utf-8") as f:
        for name, want in csv.reader(f):
            if name == "one row":
                got = db.execute("select words from things where id = 123457").fetchone()[0]
            elif name in where:
                got = db.execute(f"select count(*)::varchar from things where {where[name]}").fetchone()[0]
            else:
                got = db.execute(f"select ({queries[name]})::varchar from things").fetchone()[0]
            if got != want and not (name == "last local" and text_of_time(got) == text_of_time(want)):
                fail(name, "is", got, "and not", want)
            n += 1
    print(f"sums: DuckDB {duckdb.__version__} agrees with PostgreSQL in {n} counts, sums, bounds and searches")


def foreign():
    t = datetime.datetime(2026, 11, 22, 10, 0, 0, 123456)
    table = pa.table({
        "u8": pa.array([255, None, 0], pa.uint8()),
        "u16": pa.array([65535, 0, None], pa.uint16()),
        "u32": pa.array([4294967295, 0, None], pa.uint32()),
        "u64": pa.array([18446744073709551615, 0, None], pa.uint64()),
        "i8": pa.array([-128, 127, None], pa.int8()),
        "dictionary": pa.array(["a", None, "a"]).dictionary_encode(),
        "large": pa.array(["x", "", None], pa.large_string()),
        "ns": pa.array([1790000000123456000, None, -1000], pa.timestamp("ns")),
        "ms": pa.array([1790000000123, None, -1], pa.timestamp("ms", "Europe/Berlin")),
        "time": pa.array([1000, None, 86399999], pa.time32("ms")),
        "money": pa.array([decimal.Decimal("-1.50"), None, decimal.Decimal("99999999999999999.99")], pa.decimal128(19, 2)),
        "list": pa.array([[1, None], [], None], pa.list_(pa.int32())),
        "lists": pa.array([[["a"], [], None], [[]], None], pa.list_(pa.list_(pa.string()))),
        "struct": pa.array([{"a": 1, "b": {"c": "x", "d": None}}, None, {"a": None, "b": None}], pa.struct([("a", pa.int64()), ("b", pa.struct([("c", pa.string()), ("d", pa.date32())]))])),
        "structs": pa.array([[{"n": 1, "t": t}, {"n": 2, "t": None}], [], None], pa.list_(pa.struct([("n", pa.int16()), ("t", pa.timestamp("us"))]))),
        "map": pa.array([[("k", [1, 2]), ("l", None)], [], None], pa.map_(pa.string(), pa.list_(pa.int32()))),
        "pairs": pa.array([[(1, "x")], [], None], pa.map_(pa.int32(), pa.string())),
        "fixed": pa.array([b"\x00\xff", None, b"ab"], pa.binary(2)),
    })
    want = [
        {"u8": 255, "u16": 65535, "u32": 4294967295, "u64": "18446744073709551615", "i8": -128, "dictionary": "a", "large": "x",
         "ns": "2026-09-21T14:13:20.123456", "ms": "2026-09-21T14:13:20.123000Z", "time": "00:00:01", "money": "-1.50",
         "list": [1, None], "lists": [["a"], [], None], "struct": {"a": 1, "b": {"c": "x", "d": None}},
         "structs": [{"n": 1, "t": "2026-11-22T10:00:00.123456"}, {"n": 2, "t": None}], "map": {"k": [1, 2], "l": None},
         "pairs": [{"key": 1, "value": "x"}], "fixed": "AP8="},
        {"u8": None, "u16": 0, "u32": 0, "u64": "0", "i8": 127, "dictionary": None, "large": "", "ns": None, "ms": None, "time": None,
         "money": None, "list": [], "lists": [[]], "struct": None, "structs": [], "map": {}, "pairs": [], "fixed": None},
        {"u8": 0, "u16": None, "u32": None, "u64": None, "i8": None, "dictionary": "a", "large": None, "ns": "1969-12-31T23:59:59.999999",
         "ms": "1969-12-31T23:59:59.999000Z", "time": "23:59:59.999", "money": "99999999999999999.99", "list": None, "lists": None,
         "struct": {"a": None, "b": None}, "structs": None, "map": None, "pairs": None, "fixed": "YWI="},
    ]
    copies = 20000
    pq.write_table(pa.concat_tables([table] * copies), folder + "/plain.parquet", row_group_size=7000, data_page_size=1 << 14)
    old = pa.concat_tables([table.select(["u8", "ns", "list"])] * copies)
    pq.write_table(old, folder + "/old.parquet", use_deprecated_int96_timestamps=True, compression="gzip", version="1.0")
    pq.write_table(pa.concat_tables([table] * copies), folder + "/foreign.parquet", row_group_size=7000, data_page_size=1 << 14,
                   compression="brotli", data_page_version="2.0", use_dictionary=["dictionary", "list.list.element"])
    with open(folder + "/foreign.ndjson", "w", encoding="utf-8") as f:
        for _ in range(copies):
            for row in want:
                f.write(json.dumps(row) + "\n")
    with open(folder + "/old.ndjson", "w", encoding="utf-8") as f:
        for _ in range(copies):
            for row in want:
                f.write(json.dumps({k: row[k] for k in ("u8", "ns", "list")}) + "\n")


{"values": values, "sums": sums, "foreign": foreign}[part]()
