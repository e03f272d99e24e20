//! What a fabric may fill into an answer file: the values for the placeholders that the product's documentation lists
//! (New-ShieldedVMSpecializationDataFile).
//!
//! The fabric never sees the answer file and is told nothing about it, so neither a value that finds no placeholder nor a
//! placeholder without a value is an error. Only the listed names are replaced: with names of its choice a fabric could
//! find out, or change, what stands between two `@` of a password. A value cannot add elements, and is not searched
//! for placeholders.

use std::collections::BTreeMap;

use zeroize::Zeroizing;

use super::data_file::LARGEST_CONTENTS;

/// Values by the names of their placeholders, without the `@`.
#[derive(Clone, Debug, Default)]
pub struct Values(BTreeMap<String, Vec<u8>>);

/// A value that is not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ValueError {
    /// No such placeholder.
    #[error(
        "{0:?} is no placeholder of an answer file: ComputerName, TimeZone and ProductKey are, and, with the number of \
         the network adapter and of the route, IP4Addr-1, IP6Addr-1, MACAddr-1, Prefix-1-1, NextHop-1-1, DnsAddr-1-1"
    )]
    Name(String),
    /// A value that is none.
    #[error("the value of {0} has more than {LONGEST} bytes or control characters")]
    Value(String),
    /// The answer file grows too long.
    #[error("with these values the answer file would be too long")]
    TooLong,
}

impl Values {
    /// Checks names (with or without their `@`) and values.
    pub fn new(values: &BTreeMap<String, String>) -> Result<Values, ValueError> {
        let mut checked = BTreeMap::new();
        for (name, value) in values {
            let bare = name.strip_prefix('@').and_then(|name| name.strip_suffix('@'));
            let bare = bare.unwrap_or(name);
            if !is_placeholder(bare) {
                return Err(ValueError::Name(name.chars().take(60).collect()));
            }
            if value.len() > LONGEST || value.chars().any(char::is_control) {
                return Err(ValueError::Value(bare.to_owned()));
            }
            checked.insert(bare.to_owned(), escape(value).into_bytes());
        }
        Ok(Values(checked))
    }

    /// The answer file with its values.
    pub(super) fn fill(&self, answer_file: &[u8]) -> Result<Zeroizing<Vec<u8>>, ValueError> {
        let mut pieces: Vec<&[u8]> = Vec::new();
        let mut rest = answer_file;
        while let Some(at) = rest.iter().position(|byte| *byte == b'@') {
            let (before, placed) = rest.split_at(at);
            let end = placed.iter().skip(1).position(|byte| *byte == b'@');
            let name = end.and_then(|end| Some((placed.get(1..=end)?, placed.get(end.checked_add(2)?..)?)));
            let value = name.and_then(|(name, after)| Some((self.0.get(std::str::from_utf8(name).ok()?)?, after)));
            pieces.push(before);
            match value {
                Some((value, after)) => {
                    pieces.push(value);
                    rest = after;
                }
                None => {
                    // It may be the end of another name that the next one begins.
                    let (sign, after) = placed.split_at(1);
                    pieces.push(sign);
                    rest = after;
                }
            }
        }
        pieces.push(rest);
        let length = pieces.iter().map(|piece| piece.len()).sum();
        if length > 2 * LARGEST_CONTENTS {
            return Err(ValueError::TooLong);
        }
        // Reserved at once, so that no half-grown copy stays behind in freed memory.
        let mut out = Zeroizing::new(Vec::with_capacity(length));
        for piece in pieces {
            out.extend_from_slice(piece);
        }
        Ok(out)
    }
}

fn is_placeholder(name: &str) -> bool {
    if ["ComputerName", "TimeZone", "ProductKey"].contains(&name) {
        return true;
    }
    let mut parts = name.split('-');
    let numbers = match parts.next() {
        Some("IP4Addr" | "IP6Addr" | "MACAddr") => 1,
        Some("Prefix" | "NextHop" | "DnsAddr") => 2,
        _ => return false,
    };
    let number = |part: &str| (1..=2).contains(&part.len()) && part.chars().all(|c| c.is_ascii_digit());
    parts.clone().count() == numbers && parts.all(number)
}

fn escape(value: &str) -> String {
    value
        .replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
        .replace('\'', "&apos;")
}

const LONGEST: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn values(pairs: &[(&str, &str)]) -> Result<Values, ValueError> {
        let map = pairs
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        Values::new(&map.collect())
    }

    fn fill(pairs: &[(&str, &str)], file: &str) -> String {
        let filled = values(pairs).unwrap().fill(file.as_bytes()).unwrap();
        String::from_utf8(filled.to_vec()).unwrap()
    }

    #[test]
    fn placeholders_get_their_values_and_nothing_else_changes() {
        let pairs = [
            ("@ComputerName@", "web-01"),
            ("IP4Addr-1", "10.0.0.9/24"),
            ("Prefix-2-1", "24"),
        ];
        let file = "<a>@ComputerName@</a><b>@IP4Addr-1@,@Prefix-2-1@</b><p>P@ss@word@ComputerName@@</p>@TimeZone@ @";
        assert_eq!(
            fill(&pairs, file),
            "<a>web-01</a><b>10.0.0.9/24,24</b><p>P@ss@wordweb-01@</p>@TimeZone@ @"
        );
        assert_eq!(fill(&[], file), file);
    }

    #[test]
    fn a_value_adds_no_element_and_is_not_searched() {
        let pairs = [("ComputerName", "</a><evil k=\"'&\">"), ("TimeZone", "@ComputerName@")];
        assert_eq!(
            fill(&pairs, "<a>@ComputerName@</a>@TimeZone@"),
            "<a>&lt;/a&gt;&lt;evil k=&quot;&apos;&amp;&quot;&gt;</a>@ComputerName@"
        );
    }

    #[test]
    fn only_the_documented_names_are_taken() {
        for bad in [
            "",
            "@@",
            "ss",
            "Password",
            "Prefix-1",
            "IP4Addr-1-1",
            "IP4Addr-x",
            "MACAddr-100",
            "IP4Addr-",
        ] {
            assert!(matches!(values(&[(bad, "x")]), Err(ValueError::Name(_))), "{bad:?}");
        }
        for good in ["ProductKey", "NextHop-1-2", "DnsAddr-1-1", "@IP6Addr-12@"] {
            values(&[(good, "x")]).unwrap();
        }
        for bad in ["a\nb", &"x".repeat(LONGEST + 1)] {
            assert!(matches!(values(&[("TimeZone", bad)]), Err(ValueError::Value(_))));
        }
        let many = "@TimeZone@".repeat(100_000);
        let long = values(&[("TimeZone", &"&".repeat(200))]).unwrap().fill(many.as_bytes());
        assert_eq!(long.err(), Some(ValueError::TooLong));
    }

    proptest! {
        #[test]
        fn any_file_is_filled(bytes: Vec<u8>) {
            let none = Values::default();
            let filled = none.fill(&bytes).unwrap();
            prop_assert_eq!(filled.as_slice(), bytes.as_slice());
            let _ = values(&[("TimeZone", "x")]).unwrap().fill(&bytes);
        }
    }
}
