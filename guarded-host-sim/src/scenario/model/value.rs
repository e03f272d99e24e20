//! Values that know where in the file they stand, and durations in words.

use std::{borrow::Cow, fmt, ops::Deref, time::Duration};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

/// A stretch of the file, in bytes.
pub type Span = std::ops::Range<usize>;

/// A value with its place in the file, for checks that come after reading.
#[derive(Clone, Debug)]
pub struct At<T> {
    /// Its place; empty for a value that no file holds.
    pub span: Span,
    value: T,
}

impl<T> Deref for At<T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T> From<T> for At<T> {
    fn from(value: T) -> At<T> {
        At { span: 0..0, value }
    }
}

impl From<&str> for At<String> {
    fn from(value: &str) -> At<String> {
        At::from(value.to_owned())
    }
}

impl<T: PartialEq> PartialEq for At<T> {
    /// The place does not matter.
    fn eq(&self, other: &At<T>) -> bool {
        self.value == other.value
    }
}

impl<T: fmt::Display> fmt::Display for At<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.value.fmt(f)
    }
}

impl<T: Serialize> Serialize for At<T> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        self.value.serialize(to)
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for At<T> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<At<T>, D::Error> {
        let spanned = toml::Spanned::<T>::deserialize(from)?;
        Ok(At {
            span: spanned.span(),
            value: spanned.into_inner(),
        })
    }
}

impl<T: JsonSchema> JsonSchema for At<T> {
    fn inline_schema() -> bool {
        T::inline_schema()
    }
    fn schema_name() -> Cow<'static, str> {
        T::schema_name()
    }
    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        T::json_schema(generator)
    }
}

/// A length of time as people write it: `90s`, `15m`, `9h`, `2d`, `500ms`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Length(pub Duration);

impl Length {
    fn parse(text: &str) -> Option<Length> {
        let digits = text.find(|c: char| !c.is_ascii_digit())?;
        let (number, unit) = text.split_at(digits);
        let number: u64 = number.parse().ok()?;
        let seconds = |of: u64| number.checked_mul(of).map(Duration::from_secs);
        match unit {
            "ms" => Some(Duration::from_millis(number)),
            "s" => seconds(1),
            "m" => seconds(60),
            "h" => seconds(3600),
            "d" => seconds(86_400),
            _ => None,
        }
        .map(Length)
    }
}

impl fmt::Display for Length {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let millis = self.0.as_millis();
        for (unit, of) in [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000)] {
            if millis > 0 && millis.is_multiple_of(of) {
                return write!(f, "{}{unit}", millis / of);
            }
        }
        write!(f, "{millis}ms")
    }
}

impl Serialize for Length {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Length {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Length, D::Error> {
        let text = String::deserialize(from)?;
        Length::parse(&text).ok_or_else(|| {
            D::Error::custom(format!(
                "{text:?} is no length of time; write a whole number and ms, s, m, h or d: \"90s\", \"9h\""
            ))
        })
    }
}

impl JsonSchema for Length {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> Cow<'static, str> {
        "Length".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "description": "A length of time: a whole number and ms, s, m, h or d.",
            "pattern": "^[0-9]+(ms|s|m|h|d)$",
            "examples": ["90s", "9h"]
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_read_and_written() {
        for (text, seconds) in [("90s", 90), ("15m", 900), ("9h", 32_400), ("2d", 172_800), ("0s", 0)] {
            let length = Length::parse(text).unwrap();
            assert_eq!(length.0.as_secs(), seconds, "{text}");
            assert_eq!(Length::parse(&length.to_string()), Some(length));
        }
        assert_eq!(Length::parse("1500ms").unwrap().to_string(), "1500ms");
        for bad in [
            "",
            "9",
            "h",
            "9 h",
            "-1s",
            "1.5h",
            "9w",
            "99999999999999999999s",
            "18446744073709551615d",
        ] {
            assert_eq!(Length::parse(bad), None, "{bad}");
        }
    }
}
