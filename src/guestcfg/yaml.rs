//! YAML of a fixed shape. In: a JSON value. Out: block-style text that YAML 1.1 and 1.2 parsers read back to that value:
//! every string is double-quoted (a MAC of digits is a number otherwise), so no value can become a key.

use serde_json::Value;

/// The value as a YAML document.
pub(super) fn yaml(value: &Value) -> String {
    let mut text = String::new();
    match value {
        Value::Object(map) if !map.is_empty() => block(&mut text, value, 0),
        Value::Array(list) if !list.is_empty() => block(&mut text, value, 0),
        scalar => text = format!("{scalar}\n"),
    }
    text
}

fn block(text: &mut String, value: &Value, indent: usize) {
    let pad = " ".repeat(indent);
    match value {
        Value::Object(map) => {
            for (name, value) in map {
                *text += &format!("{pad}{}:", key(name));
                entry(text, value, indent);
            }
        }
        Value::Array(list) => {
            for value in list {
                if is_block(value) {
                    // The dash takes the place of the first two spaces of the nested block.
                    let start = text.len() + indent;
                    block(text, value, indent + 2);
                    text.replace_range(start..start + 2, "- ");
                } else {
                    *text += &format!("{pad}- {value}\n");
                }
            }
        }
        scalar => *text += &format!("{pad}{scalar}\n"),
    }
}

fn entry(text: &mut String, value: &Value, indent: usize) {
    if is_block(value) {
        text.push('\n');
        block(text, value, indent + 2);
    } else {
        *text += &format!(" {value}\n");
    }
}

fn is_block(value: &Value) -> bool {
    match value {
        Value::Object(map) => !map.is_empty(),
        Value::Array(list) => !list.is_empty(),
        _ => false,
    }
}

/// A name stands bare only where no YAML version takes it for a boolean, a null or a number.
fn key(name: &str) -> String {
    const RESERVED: [&str; 9] = ["y", "n", "yes", "no", "on", "off", "true", "false", "null"];
    let bare = name.starts_with(|first: char| first.is_ascii_lowercase())
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'_')
        && !RESERVED.contains(&name);
    if bare { name.to_owned() } else { Value::from(name).to_string() }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn any_value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            any::<bool>().prop_map(Value::from),
            any::<u32>().prop_map(Value::from),
            "[ -~]{0,12}".prop_map(Value::from),
            Just(json!("on")),
            Just(json!("02:00:10:20:30:40")),
        ];
        leaf.prop_recursive(3, 24, 4, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                proptest::collection::vec(("[a-z0-9 :#-]{1,6}|on|no", inner), 0..4)
                    .prop_map(|pairs| Value::Object(pairs.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn a_yaml_parser_reads_back_what_was_written(value in any_value()) {
            let text = yaml(&value);
            let read: Value = serde_saphyr::from_str(&text).map_err(|e| TestCaseError::fail(format!("{e}\n{text}")))?;
            prop_assert_eq!(read, value, "{}", text);
        }
    }

    #[test]
    fn lists_and_maps_nest() {
        let value = json!({"on": 1, "list": [{"to": "a", "via": ["b", "c"]}, "d", []], "none": {}});
        insta::assert_snapshot!(yaml(&value), @r#"
        "on": 1
        list:
          - to: "a"
            via:
              - "b"
              - "c"
          - "d"
          - []
        none: {}
        "#);
    }
}
