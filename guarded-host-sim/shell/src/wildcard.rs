//! Patterns with `*`, `?` and `[a-z]`, as `-like` and paths take them.

/// A pattern.
#[derive(Clone, Debug)]
pub struct Wildcard {
    parts: Vec<Part>,
    case: bool,
}

#[derive(Clone, Debug)]
enum Part {
    Any,
    One,
    Set(Vec<(char, char)>),
    Just(char),
}

impl Wildcard {
    /// A pattern for which case does not matter.
    pub fn new(pattern: &str) -> Wildcard {
        Wildcard::with_case(pattern, false)
    }

    /// A pattern; whether case matters.
    pub fn with_case(pattern: &str, case: bool) -> Wildcard {
        let fold = |c: char| if case { c } else { lower(c) };
        let mut parts = Vec::new();
        let mut rest = pattern.chars();
        while let Some(c) = rest.next() {
            parts.push(match c {
                '*' => Part::Any,
                '?' => Part::One,
                '`' => Part::Just(fold(rest.next().unwrap_or('`'))),
                '[' if rest.as_str().contains(']') => {
                    let mut set = Vec::new();
                    let inside: Vec<char> = rest.by_ref().take_while(|c| *c != ']').map(fold).collect();
                    let mut at = 0;
                    while let Some(first) = inside.get(at) {
                        match (inside.get(at + 1), inside.get(at + 2)) {
                            (Some('-'), Some(last)) => {
                                set.push((*first, *last));
                                at += 3;
                            }
                            _ => {
                                set.push((*first, *first));
                                at += 1;
                            }
                        }
                    }
                    Part::Set(set)
                }
                other => Part::Just(fold(other)),
            });
        }
        Wildcard { parts, case }
    }

    /// Whether a text is of this pattern.
    pub fn matches(&self, text: &str) -> bool {
        let fold = |c: char| if self.case { c } else { lower(c) };
        let text: Vec<char> = text.chars().map(fold).collect();
        // Where the last `*` stands, and how far it reaches: the only thing that is ever taken back.
        let (mut part, mut at, mut star) = (0, 0, None);
        loop {
            let fits = match (self.parts.get(part), text.get(at)) {
                (Some(Part::Any), _) => {
                    star = Some((part, at));
                    part += 1;
                    continue;
                }
                (None, None) => return true,
                (Some(Part::One), Some(_)) => true,
                (Some(Part::Just(own)), Some(c)) => own == c,
                (Some(Part::Set(set)), Some(c)) => set.iter().any(|(first, last)| (first..=last).contains(&c)),
                _ => false,
            };
            match (fits, star) {
                (true, _) => {
                    part += 1;
                    at += 1;
                }
                (false, Some((of, reach))) if reach < text.len() => {
                    star = Some((of, reach + 1));
                    part = of + 1;
                    at = reach + 1;
                }
                _ => return false,
            }
        }
    }
}

/// Whether a text is a pattern rather than a name.
pub fn is_pattern(text: &str) -> bool {
    text.contains(['*', '?', '['])
}

fn lower(c: char) -> char {
    c.to_lowercase().next().unwrap_or(c)
}

#[cfg(test)]
mod tests {
    use super::Wildcard;

    #[test]
    fn patterns_match_what_powershell_says() {
        for (pattern, text, fits) in [
            ("*", "", true),
            ("Host*", "HOST01", true),
            ("h?st01", "host01", true),
            ("host0[1-3]", "host02", true),
            ("host0[1-3]", "host04", false),
            ("*a*b", "xaxxab", true),
            ("a*", "ba", false),
            ("`*", "*", true),
            ("`*", "x", false),
            ("", "x", false),
        ] {
            assert_eq!(Wildcard::new(pattern).matches(text), fits, "{pattern} {text}");
        }
        assert!(!Wildcard::with_case("Host*", true).matches("host"));
    }
}
