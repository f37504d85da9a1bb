//! Headers to add and to remove, at one level of a route configuration.

use std::borrow::Cow;

use api::envoy::config::core::v3::HeaderValueOption;
use api::envoy::config::core::v3::header_value_option::HeaderAppendAction;
use base::FieldError;
use smallvec::SmallVec;
use telemetry::format::{Format, Missing};

/// Headers that can be changed: those of an HTTP message, or what an RPC protocol has in their place.
pub trait HeaderMap {
    /// Value of a header; several values are joined by commas.
    fn get(&self, lower: &str) -> Option<Cow<'_, [u8]>>;
    /// Removes a header with all of its values.
    fn remove(&mut self, lower: &str);
    /// Gives a header this one value.
    fn set(&mut self, lower: &str, value: &[u8]);
    /// Adds a value beside those that are there.
    fn append(&mut self, lower: &str, value: &[u8]);
}

/// What is done to headers at one level: removals first, then overwrites, then additions.
#[derive(Debug, Default)]
pub struct HeaderOps {
    remove: Vec<Box<str>>,
    add: Vec<Addition>,
}

#[derive(Debug)]
struct Addition {
    name: Box<str>,
    value: HeaderText,
    action: HeaderAppendAction,
    keep_empty: bool,
}

/// Additions with their values; most levels have few.
type Pending<'o> = SmallVec<[(&'o Addition, Cow<'o, [u8]>); 8]>;

#[derive(Debug)]
enum HeaderText {
    Literal(Box<[u8]>),
    Format(Format),
}

impl HeaderOps {
    /// Compiles the fields `<direction>_headers_to_add` and `<direction>_headers_to_remove` of a message.
    pub(super) fn compile(
        direction: &str,
        add: &[HeaderValueOption],
        remove: &[String],
    ) -> Result<Self, FieldError> {
        let mut ops = Self::default();
        for (index, option) in add.iter().enumerate() {
            let addition = Addition::compile(option).map_err(|error| {
                error
                    .in_index(index)
                    .in_field(&format!("{direction}_headers_to_add"))
            })?;
            ops.add.push(addition);
        }
        for (index, name) in remove.iter().enumerate() {
            let fail = |message: &str| {
                FieldError::new(message)
                    .in_index(index)
                    .in_field(&format!("{direction}_headers_to_remove"))
            };
            if name.is_empty() {
                return Err(fail("must not be empty"));
            }
            if !is_modifiable(name) {
                return Err(fail(":-prefixed or host headers may not be removed"));
            }
            ops.remove.push(name.to_ascii_lowercase().into());
        }
        Ok(ops)
    }

    /// Whether nothing is to be done.
    pub fn is_empty(&self) -> bool {
        self.remove.is_empty() && self.add.is_empty()
    }

    /// Changes the headers. `format` writes the text of a value with command operators.
    pub fn apply<H: HeaderMap>(
        &self,
        headers: &mut H,
        format: &mut dyn FnMut(&H, &Format, &mut Vec<u8>),
    ) {
        for name in &self.remove {
            headers.remove(name);
        }
        // All values are computed before the first is written, so that none sees another of its level.
        let mut pending = Pending::new();
        for addition in &self.add {
            let value = match &addition.value {
                HeaderText::Literal(text) => Cow::Borrowed(&**text),
                HeaderText::Format(text) => {
                    let mut out = Vec::new();
                    format(headers, text, &mut out);
                    Cow::Owned(out)
                }
            };
            let wanted = match addition.action {
                HeaderAppendAction::AddIfAbsent => headers.get(&addition.name).is_none(),
                HeaderAppendAction::OverwriteIfExists => headers.get(&addition.name).is_some(),
                HeaderAppendAction::AppendIfExistsOrAdd
                | HeaderAppendAction::OverwriteIfExistsOrAdd => true,
            };
            if wanted && (!value.is_empty() || addition.keep_empty) {
                pending.push((addition, value));
            }
        }
        for (addition, value) in pending.iter().filter(|(addition, _)| addition.overwrites()) {
            headers.set(&addition.name, value);
        }
        for (addition, value) in pending
            .iter()
            .filter(|(addition, _)| !addition.overwrites())
        {
            headers.append(&addition.name, value);
        }
    }
}

impl Addition {
    fn compile(option: &HeaderValueOption) -> Result<Self, FieldError> {
        let header = option
            .header
            .as_ref()
            .ok_or_else(|| FieldError::at("header", "is required"))?;
        if header.key.is_empty() {
            return Err(FieldError::at("key", "must not be empty").in_field("header"));
        }
        if !is_modifiable(&header.key) {
            return Err(
                FieldError::at("key", ":-prefixed or host headers may not be modified")
                    .in_field("header"),
            );
        }
        let mut action = HeaderAppendAction::try_from(option.append_action).map_err(|_| {
            FieldError::at(
                "append_action",
                format!("unknown value {}", option.append_action),
            )
        })?;
        if let Some(append) = option.append {
            if action != HeaderAppendAction::AppendIfExistsOrAdd {
                let text = "both append and append_action are set and it's not allowed";
                return Err(FieldError::at("append", text));
            }
            if !append {
                action = HeaderAppendAction::OverwriteIfExistsOrAdd;
            }
        }
        let value = if header.raw_value.is_empty() || !header.value.is_empty() {
            let format = Format::compile_with(&header.value, Missing::Nothing)
                .map_err(|error| FieldError::at("value", error.to_string()).in_field("header"))?;
            match format.literal() {
                Some(text) => HeaderText::Literal(text.as_bytes().into()),
                None => HeaderText::Format(format),
            }
        } else {
            HeaderText::Literal(header.raw_value.as_slice().into())
        };
        if let HeaderText::Literal(text) = &value
            && text
                .iter()
                .any(|byte| matches!(byte, b'\0' | b'\r' | b'\n'))
        {
            return Err(FieldError::at("value", "must not hold NUL, CR or LF").in_field("header"));
        }
        if header
            .key
            .bytes()
            .any(|byte| matches!(byte, b'\0' | b'\r' | b'\n'))
        {
            return Err(FieldError::at("key", "must not hold NUL, CR or LF").in_field("header"));
        }
        Ok(Self {
            name: header.key.to_ascii_lowercase().into(),
            value,
            action,
            keep_empty: option.keep_empty_value,
        })
    }

    fn overwrites(&self) -> bool {
        matches!(
            self.action,
            HeaderAppendAction::OverwriteIfExists | HeaderAppendAction::OverwriteIfExistsOrAdd
        )
    }
}

/// The words that route a request are changed by rewrites, not as headers.
fn is_modifiable(name: &str) -> bool {
    !name.starts_with(':') && !name.eq_ignore_ascii_case("host")
}

#[cfg(test)]
mod tests {
    use api::envoy::config::core::v3::HeaderValue;

    use super::*;

    #[derive(Debug, Default, PartialEq)]
    struct List(Vec<(String, String)>);

    impl HeaderMap for List {
        fn get(&self, lower: &str) -> Option<Cow<'_, [u8]>> {
            let values: Vec<&str> = self
                .0
                .iter()
                .filter(|(name, _)| name == lower)
                .map(|(_, value)| value.as_str())
                .collect();
            (!values.is_empty()).then(|| values.join(",").into_bytes().into())
        }

        fn remove(&mut self, lower: &str) {
            self.0.retain(|(name, _)| name != lower);
        }

        fn set(&mut self, lower: &str, value: &[u8]) {
            self.remove(lower);
            self.append(lower, value);
        }

        fn append(&mut self, lower: &str, value: &[u8]) {
            self.0
                .push((lower.into(), String::from_utf8_lossy(value).into_owned()));
        }
    }

    fn option(key: &str, value: &str, action: HeaderAppendAction) -> HeaderValueOption {
        HeaderValueOption {
            header: Some(HeaderValue {
                key: key.into(),
                value: value.into(),
                ..Default::default()
            }),
            append_action: action.into(),
            ..Default::default()
        }
    }

    #[test]
    fn each_action_does_what_it_says() {
        use HeaderAppendAction::*;
        for (action, present, absent) in [
            (AppendIfExistsOrAdd, "old,new", Some("new")),
            (AddIfAbsent, "old", Some("new")),
            (OverwriteIfExistsOrAdd, "new", Some("new")),
            (OverwriteIfExists, "new", None),
        ] {
            let ops = HeaderOps::compile("request", &[option("X-A", "new", action)], &[]).unwrap();
            let mut headers = List(vec![("x-a".into(), "old".into())]);
            ops.apply(&mut headers, &mut |_, _, _| unreachable!("no operators"));
            assert_eq!(
                headers.get("x-a").unwrap(),
                present.as_bytes(),
                "{action:?}"
            );
            let mut headers = List::default();
            ops.apply(&mut headers, &mut |_, _, _| unreachable!("no operators"));
            assert_eq!(
                headers.get("x-a").as_deref(),
                absent.map(str::as_bytes),
                "{action:?}"
            );
        }
    }

    #[test]
    fn values_see_the_headers_before_additions() {
        let add = [
            option(
                "x-copy",
                "%REQ(x-a)%",
                HeaderAppendAction::AppendIfExistsOrAdd,
            ),
            option("x-a", "2", HeaderAppendAction::OverwriteIfExistsOrAdd),
            option("x-empty", "", HeaderAppendAction::AppendIfExistsOrAdd),
        ];
        let ops = HeaderOps::compile("request", &add, &["X-Gone".into()]).unwrap();
        let mut headers = List(vec![
            ("x-a".into(), "1".into()),
            ("x-gone".into(), "1".into()),
        ]);
        ops.apply(&mut headers, &mut |headers, _, out| {
            out.extend_from_slice(&headers.get("x-a").unwrap());
        });
        assert_eq!(headers.get("x-copy").unwrap().as_ref(), b"1");
        assert_eq!(headers.get("x-a").unwrap().as_ref(), b"2");
        assert!(headers.get("x-gone").is_none() && headers.get("x-empty").is_none());
    }

    #[test]
    fn refuses_what_envoy_refuses() {
        for (key, value, expected) in [
            (
                ":path",
                "x",
                "request_headers_to_add[0].header.key: :-prefixed or host headers may not be modified",
            ),
            (
                "Host",
                "x",
                "request_headers_to_add[0].header.key: :-prefixed or host headers may not be modified",
            ),
            (
                "",
                "x",
                "request_headers_to_add[0].header.key: must not be empty",
            ),
            (
                "a",
                "x\r\ny: z",
                "request_headers_to_add[0].header.value: must not hold NUL, CR or LF",
            ),
        ] {
            let add = [option(key, value, HeaderAppendAction::AppendIfExistsOrAdd)];
            assert_eq!(
                HeaderOps::compile("request", &add, &[])
                    .unwrap_err()
                    .to_string(),
                expected
            );
        }
        assert_eq!(
            HeaderOps::compile("response", &[], &["host".into()])
                .unwrap_err()
                .to_string(),
            "response_headers_to_remove[0]: :-prefixed or host headers may not be removed"
        );
    }
}
