//! What `bpf-lb-load apply` and `bpf-lb-load follow` read is taken if and only if its JSON Schema says that it is valid.

#![expect(clippy::expect_used, reason = "a test fails by panicking")]

use std::{collections::BTreeMap, fmt, sync::LazyLock};

use jsonschema::Validator;
use proptest::{
    prelude::*,
    sample::{Index, select},
    test_runner::RngSeed,
};
use serde::{
    Deserialize, Deserializer,
    de::{Error as _, MapAccess, SeqAccess, Visitor},
};
use serde_json::{Map, Value, json};
use service_table::{Line, ServiceTable};

static TABLE: LazyLock<Validator> = LazyLock::new(|| validator(&json!(schemars::schema_for!(ServiceTable))));
static LINE: LazyLock<Validator> = LazyLock::new(|| validator(&json!(schemars::schema_for!(Line))));

fn validator(schema: &Value) -> Validator {
    jsonschema::validator_for(schema).expect("a schema")
}

/// JSON in which no object has a key twice: of others, a schema says nothing (RFC 8259, section 4), and they are refused.
struct Unique;

impl<'de> Deserialize<'de> for Unique {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Self)
    }
}

impl<'de> Visitor<'de> for Unique {
    type Value = Self;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON without keys that an object has twice")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self, A::Error> {
        let mut seen = BTreeMap::new();
        while let Some((key, Self)) = map.next_entry::<String, Self>()? {
            if seen.insert(key, ()).is_some() {
                return Err(A::Error::custom("twice"));
            }
        }
        Ok(self)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self, A::Error> {
        while let Some(Self) = list.next_element::<Self>()? {}
        Ok(self)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_str<E>(self, _: &str) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_unit<E>(self) -> Result<Self, E> {
        Ok(self)
    }
}

fn is_valid(schema: &Validator, text: &[u8]) -> bool {
    let unique = serde_json::from_slice::<Unique>(text).is_ok();
    unique && serde_json::from_slice::<Value>(text).is_ok_and(|value| schema.is_valid(&value))
}

/// Fails if parser and schema say different things of `text`; otherwise what both say.
fn agree<T: for<'de> Deserialize<'de>>(schema: &Validator, text: &[u8]) -> Result<bool, TestCaseError> {
    let (valid, taken) = (is_valid(schema, text), serde_json::from_slice::<T>(text));
    let error = taken.as_ref().err().map(ToString::to_string);
    prop_assert_eq!(valid, taken.is_ok(), "{}: {:?}", String::from_utf8_lossy(text), error);
    Ok(valid)
}

type Json = BoxedStrategy<Value>;

/// An object with these keys, and some of those.
fn object(always: Vec<(&'static str, Json)>, sometimes: Vec<(&'static str, Json)>) -> Json {
    let field = |(key, value): (&'static str, Json)| value.prop_map(move |value| (key.to_owned(), value)).boxed();
    let always: Vec<_> = always.into_iter().map(field).collect();
    let sometimes: Vec<_> = sometimes.into_iter().map(|one| proptest::option::weighted(0.3, field(one))).collect();
    (always, sometimes)
        .prop_map(|(always, sometimes)| {
            always.into_iter().chain(sometimes.into_iter().flatten()).collect::<Map<_, _>>()
        })
        .prop_map(Value::Object)
        .boxed()
}

fn list(one: Json) -> Json {
    proptest::collection::vec(one, 0..3).prop_map(Value::Array).boxed()
}

fn one_of(values: &[Value]) -> Json {
    select(values.to_vec()).boxed()
}

fn name(max: usize) -> Json {
    prop_oneof![
        "[a-z0-9-]{1,12}".prop_map(Value::from),
        Just(json!("é".repeat(max))),
        Just(json!("\n")),
        Just(json!(""))
    ]
    .boxed()
}

fn port() -> Json {
    prop_oneof![(1..=u16::MAX).prop_map(Value::from), one_of(&[json!(1), json!(65_535), json!(80.0)])].boxed()
}

fn address() -> Json {
    let known =
        vec!["10.0.0.1", "223.255.255.255", "fd00::1", "::ffff:10.0.0.1", "::FFFF:1.0.0.0", "1:2:3:4:5:6:7:8", "::1"];
    let four = (1..224_u8, any::<[u8; 3]>()).prop_map(|(a, [b, c, d])| json!(format!("{a}.{b}.{c}.{d}")));
    prop_oneof![select(known).prop_map(Value::from), four].boxed()
}

fn cidr() -> Json {
    one_of(&[json!("10.0.0.0/8"), json!("10.0.0.1/32"), json!("0.0.0.0/0"), json!("fd00::/112"), json!("::/128")])
}

fn time() -> Json {
    one_of(&[
        json!("2026-11-25T17:00:00Z"),
        json!("0000-02-31T23:59:59.123456789-23:59"),
        json!("9999-12-31T00:00:00+00:00"),
        Value::Null,
    ])
}

fn service_name() -> Vec<(&'static str, Json)> {
    vec![("namespace", name(63)), ("name", name(63))]
}

fn node() -> Json {
    object(vec![("name", name(253)), ("addresses", list(address()))], vec![])
}

fn nodes() -> Vec<(&'static str, Json)> {
    vec![("nodeAddresses", list(address())), ("nodes", list(node()))]
}

fn service() -> Json {
    let is = any::<bool>().prop_map(Value::from).boxed();
    let policy = one_of(&[json!("Cluster"), json!("Local")]);
    let scope = one_of(&[json!("internal"), json!("external"), json!("node"), Value::Null]);
    let seconds = one_of(&[json!(1), json!(10_800), json!(86_400), json!(1e4)]);
    let affinity = object(vec![], vec![("timeoutSeconds", seconds)]);
    let endpoint = || vec![("address", address()), ("port", port())];
    let node = prop_oneof![name(253), Just(Value::Null)].boxed();
    let backend = object(endpoint(), vec![("local", is.clone()), ("node", node), ("scope", scope)]);
    let draining = object(endpoint(), vec![("serving", is)]);
    let mut always = service_name();
    always.push(("port", port()));
    let sometimes = vec![
        ("portName", name(15)),
        ("protocol", one_of(&[json!("TCP"), json!("UDP")])),
        ("clusterIps", list(address())),
        ("externalIps", list(address())),
        ("loadBalancerIps", list(address())),
        ("nodePort", prop_oneof![port(), Just(Value::Null)].boxed()),
        ("internalTrafficPolicy", policy.clone()),
        ("externalTrafficPolicy", policy),
        ("sessionAffinity", prop_oneof![affinity, Just(Value::Null)].boxed()),
        ("lbAlgorithm", one_of(&[json!("random"), json!("least-connections")])),
        ("backends", list(backend)),
        ("draining", list(draining)),
        ("created", time()),
    ];
    object(always, sometimes)
}

fn table() -> Json {
    let mut fields = nodes();
    fields.extend([("refuse", list(cidr())), ("services", list(service()))]);
    object(vec![], fields)
}

fn line() -> Json {
    let remove = object(service_name(), vec![("portName", name(15))]);
    let change = |key, value| object(vec![(key, value)], vec![("triggered", time())]);
    prop_oneof![
        change("set", service()),
        change("remove", remove),
        change("table", table()),
        change("nodes", object(vec![], nodes())),
        change("refuse", list(cidr())),
        change("leave", object(vec![("address", address()), ("port", port())], vec![])),
        change("renew", any::<bool>().prop_map(Value::from).boxed())
    ]
    .boxed()
}

/// What comes in a value's place.
fn odd() -> Json {
    let values = json!([
        null, true, 0, -0.0, -1, 1, 80.0, 80.5, 1e2, 65_535, 65_536, 65_536.0, 86_400, 86_401, 4_294_967_297_u64,
        18_446_744_073_709_551_615_u64, 1e300, "", "80", "\u{0}", [], [[]], {}, {"": null}, {"TCP": null}, {"Local": null},
        {"least-connections": null}, {"node": null}, "Node", "tcp", "SCTP", "local", "2026-11-25", "2026-11-25T24:00:00Z",
        "2026-11-25t17:00:00z", "2026-02-31T17:00:00.0000000001Z", "10.0.0.0/33", "10.0.0.0/08", "10.0.0.0/+8", "10.0.0.0/",
        "fd00::/129", "fe80::%eth0/64", "::ffff:10.0.0.0/104", "0.0.0.0", "0.1.2.3", "127.0.0.1", "224.0.0.1", "240.0.0.1",
        "255.255.255.255", "10.0.0.01", "10.0.0.256", "10.0.0", "1.2.3.4\n", " 1.2.3.4", "1.2.3.4:80", "::", "0:0:0:0:0:0:0:0",
        "::ffff:0.0.0.0", "::ffff:255.255.255.255", "::ffff:a00:1", "0::ffff:10.0.0.1", "::10.0.0.1", "ff02::1", "fe80::1",
        "febf::1", "fec0::1", "fe80::1%1", "[fd00::1]", "1::2::3", "1:2:3:4:5:6:7::", "::2:3:4:5:6:7:8", "12345::"
    ]);
    let Value::Array(values) = values else { unreachable!("a list") };
    let (letters, long) = ("[0-9a-fF:.]{2,24}", select(vec![15_usize, 16, 63, 64, 253, 254]));
    let groups =
        proptest::collection::vec(select(&["0", "", "ffff", "fe80", "ff02", "a00", "10.0.0.1", "0.0.0.0"][..]), 2..9);
    prop_oneof![
        6 => select(values),
        1 => letters.prop_map(Value::from),
        2 => groups.prop_map(|groups| json!(groups.join(":"))),
        1 => any::<[u8; 4]>().prop_map(|[a, b, c, d]| json!(format!("{a}.{b}.{c}.{d}"))),
        1 => any::<[u16; 8]>().prop_map(|groups| json!(std::net::Ipv6Addr::from(groups).to_string())),
        1 => long.prop_map(|length| json!("é".repeat(length))),
    ]
    .boxed()
}

/// A change to a document.
#[derive(Clone, Debug)]
enum Mutation {
    Replace(Value),
    Wrap,
    /// A name as the only key of an object.
    Key,
    /// An object as the list of its values.
    Flatten,
    Remove(Index),
    Rename(Index),
    Insert(&'static str, Value),
    Append(Value),
}

fn mutation() -> impl Strategy<Value = (Index, Mutation)> {
    let keys =
        vec!["", "x", "set", "nodes", "services", "name", "nodePort", "triggered", "clusterIps", "refuse", "scope"];
    let one = prop_oneof![
        6 => odd().prop_map(Mutation::Replace),
        1 => Just(Mutation::Wrap),
        2 => Just(Mutation::Key),
        1 => Just(Mutation::Flatten),
        1 => any::<Index>().prop_map(Mutation::Remove),
        1 => any::<Index>().prop_map(Mutation::Rename),
        1 => (select(keys), odd()).prop_map(|(key, value)| Mutation::Insert(key, value)),
        2 => odd().prop_map(Mutation::Append),
    ];
    (any::<Index>(), one)
}

fn size(value: &Value) -> usize {
    1 + match value {
        Value::Array(values) => values.iter().map(size).sum::<usize>(),
        Value::Object(map) => map.values().map(size).sum(),
        _ => 0,
    }
}

/// The value at this place, in the order in which they are written.
fn find(value: &mut Value, mut place: usize) -> &mut Value {
    if place == 0 {
        return value;
    }
    place -= 1;
    let inner: Vec<&mut Value> = match value {
        Value::Array(values) => values.iter_mut().collect(),
        Value::Object(map) => map.values_mut().collect(),
        _ => vec![],
    };
    for value in inner {
        match place.checked_sub(size(value)) {
            None => return find(value, place),
            Some(rest) => place = rest,
        }
    }
    unreachable!("a place in the document")
}

fn mutate(mut document: Value, mutations: Vec<(Index, Mutation)>) -> Value {
    for (place, mutation) in mutations {
        let place = place.index(size(&document));
        let value = find(&mut document, place);
        match (mutation, value) {
            (Mutation::Replace(new), value) => *value = new,
            (Mutation::Wrap, value) => *value = json!([value.take()]),
            (Mutation::Key, value) => {
                if let Value::String(name) = value {
                    *value = json!({ name.as_str(): null });
                }
            }
            (Mutation::Flatten, value) => {
                if let Value::Object(map) = value {
                    *value = map.values().cloned().collect();
                }
            }
            (Mutation::Remove(at), Value::Object(map)) if !map.is_empty() => drop(take(map, at)),
            (Mutation::Rename(at), Value::Object(map)) if !map.is_empty() => {
                let (key, value) = take(map, at);
                map.insert(key.to_uppercase(), value);
            }
            (Mutation::Insert(key, new), Value::Object(map)) => drop(map.insert(key.to_owned(), new)),
            (Mutation::Append(new), Value::Array(values)) => values.extend(std::iter::repeat_n(new, 3)),
            _ => {}
        }
    }
    document
}

fn take(map: &mut Map<String, Value>, at: Index) -> (String, Value) {
    let key = map.keys().nth(at.index(map.len())).cloned().unwrap_or_default();
    let value = map.remove(&key).unwrap_or_default();
    (key, value)
}

/// The document, some of its bytes replaced by others.
fn bytes(document: Json) -> impl Strategy<Value = Vec<u8>> {
    let pieces: &[&[u8]] = &[
        b"",
        b"\xff",
        b"\xc3",
        b"\xed\xa0\x80",
        b"\\ud800",
        b"\\u0000",
        b"\0",
        b"\n",
        b" ",
        b"0",
        b".0",
        b"e1",
        b"-",
        b",",
        b"{",
        b"}",
        b"[",
        b"]",
        b"\"",
        b":",
        b"null",
        b"\xef\xbb\xbf",
    ];
    let splice = (any::<Index>(), 0..4_usize, select(pieces));
    (document, proptest::collection::vec(splice, 1..3)).prop_map(|(document, splices)| {
        let mut text = document.to_string().into_bytes();
        for (at, len, piece) in splices {
            let at = at.index(text.len() + 1);
            text.splice(at..text.len().min(at + len), piece.iter().copied());
        }
        text
    })
}

fn mutated(document: Json) -> impl Strategy<Value = Value> {
    (document, proptest::collection::vec(mutation(), 1..3))
        .prop_map(|(document, mutations)| mutate(document, mutations))
}

fn config() -> ProptestConfig {
    ProptestConfig { cases: 1000, rng_seed: RngSeed::Fixed(10), failure_persistence: None, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn a_valid_document_is_taken(table in table(), line in line()) {
        prop_assert!(agree::<ServiceTable>(&TABLE, table.to_string().as_bytes())?, "{table}");
        prop_assert!(agree::<Line>(&LINE, line.to_string().as_bytes())?, "{line}");
    }

    #[test]
    fn a_mutated_document_is_taken_if_and_only_if_it_is_valid(table in mutated(table()), line in mutated(line())) {
        agree::<ServiceTable>(&TABLE, table.to_string().as_bytes())?;
        agree::<Line>(&LINE, line.to_string().as_bytes())?;
    }

    #[test]
    fn bytes_are_taken_if_and_only_if_they_are_a_valid_document(table in bytes(table()), line in bytes(line())) {
        agree::<ServiceTable>(&TABLE, &table)?;
        agree::<Line>(&LINE, &line)?;
    }

    #[test]
    fn a_document_that_ends_early_is_refused(table in table(), at in any::<Index>()) {
        let text = table.to_string();
        prop_assert!(!agree::<ServiceTable>(&TABLE, &text.as_bytes()[..at.index(text.len())])?);
    }
}
