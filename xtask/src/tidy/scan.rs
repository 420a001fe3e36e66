//! A small Rust scanner: enough to tell code from comments and strings, and to walk tokens.
//!
//! All functions keep byte positions, so a position in the masked text is one in the source.

/// The source with comments, strings and characters replaced by blanks; line breaks stay.
pub(super) fn mask(source: &str) -> String {
    let bytes = source.as_bytes();
    let mut out = bytes.to_vec();
    let mut at = 0;
    while at < bytes.len() {
        let end = match bytes[at] {
            b'/' if bytes.get(at + 1) == Some(&b'/') => line_end(bytes, at),
            b'/' if bytes.get(at + 1) == Some(&b'*') => block_comment_end(bytes, at),
            b'"' => string_end(bytes, at + 1),
            b'r' if starts_word(bytes, at) => raw_string_end(bytes, at).unwrap_or(at),
            b'\'' => character_end(source, at).unwrap_or(at),
            _ => at,
        };
        for byte in &mut out[at..end] {
            if *byte != b'\n' {
                *byte = b' ';
            }
        }
        at = end.max(at + 1);
    }
    String::from_utf8_lossy(&out).into_owned()
}

fn line_end(bytes: &[u8], at: usize) -> usize {
    bytes[at..].iter().position(|&byte| byte == b'\n').map_or(bytes.len(), |length| at + length)
}

fn block_comment_end(bytes: &[u8], mut at: usize) -> usize {
    let mut depth = 0usize;
    while at + 1 < bytes.len() {
        match (bytes[at], bytes[at + 1]) {
            (b'/', b'*') => (depth, at) = (depth + 1, at + 2),
            (b'*', b'/') => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
        if depth == 0 {
            return at;
        }
    }
    bytes.len()
}

fn string_end(bytes: &[u8], mut at: usize) -> usize {
    while at < bytes.len() {
        match bytes[at] {
            b'\\' => at += 2,
            b'"' => return at + 1,
            _ => at += 1,
        }
    }
    bytes.len()
}

/// `r`, `br` and `cr` may start a raw string; the `r` at the end of a longer word may not.
fn starts_word(bytes: &[u8], at: usize) -> bool {
    let word = |at: usize| bytes[at].is_ascii_alphanumeric() || bytes[at] == b'_';
    match at {
        0 => true,
        _ if !word(at - 1) => true,
        1 => matches!(bytes[0], b'b' | b'c'),
        _ => matches!(bytes[at - 1], b'b' | b'c') && !word(at - 2),
    }
}

fn raw_string_end(bytes: &[u8], at: usize) -> Option<usize> {
    let hashes = bytes[at + 1..].iter().take_while(|&&byte| byte == b'#').count();
    let start = at + 1 + hashes;
    if bytes.get(start) != Some(&b'"') {
        return None;
    }
    let mut close = vec![b'"'];
    close.resize(1 + hashes, b'#');
    let length = bytes[start + 1..].windows(close.len()).position(|window| window == close)?;
    Some(start + 1 + length + close.len())
}

/// The end of a character literal, or `None` for a lifetime.
fn character_end(source: &str, at: usize) -> Option<usize> {
    let rest = &source[at + 1..];
    let first = rest.chars().next()?;
    if first == '\\' {
        // Skip the escaped character itself, which may be a quote.
        let close = rest.get(2..)?.find('\'')?;
        return Some(at + 1 + 2 + close + 1);
    }
    rest[first.len_utf8()..].starts_with('\'').then(|| at + 1 + first.len_utf8() + 1)
}

/// Words and single signs of a masked text, with their positions.
pub(super) fn tokens(masked: &str) -> Vec<(usize, &str)> {
    let mut tokens = Vec::new();
    let mut characters = masked.char_indices().peekable();
    let word = |character: char| character.is_alphanumeric() || character == '_';
    while let Some((start, first)) = characters.next() {
        if first.is_whitespace() {
            continue;
        }
        let mut end = start + first.len_utf8();
        if word(first) {
            while let Some(&(at, next)) = characters.peek() {
                if !word(next) {
                    break;
                }
                end = at + next.len_utf8();
                characters.next();
            }
        }
        tokens.push((start, &masked[start..end]));
    }
    tokens
}

/// The masked text without modules under `#[cfg(test)]`.
pub(super) fn without_test_modules(masked: &str) -> String {
    const MARK: &str = "#[cfg(test)]";
    let mut out = masked.to_owned();
    for (start, _) in masked.match_indices(MARK) {
        let after = start + MARK.len();
        let tokens = tokens(&masked[after..]);
        let Some(&[(_, "mod"), _, (open, "{")]) = tokens.first_chunk() else { continue };
        let mut depth = 0usize;
        let mut end = masked.len();
        for (at, token) in tokens.iter().skip_while(|(at, _)| *at < open) {
            match *token {
                "{" => depth += 1,
                "}" => depth -= 1,
                _ => {}
            }
            if depth == 0 {
                end = after + at + 1;
                break;
            }
        }
        let blank: String =
            masked[start..end].chars().map(|c| if c == '\n' { '\n' } else { ' ' }).collect();
        // Blanks of a multi-byte character are shorter; masked code is ASCII in practice.
        if blank.len() == end - start {
            out.replace_range(start..end, &blank);
        }
    }
    out
}

/// The 1-based line of a byte position.
pub(super) fn line_of(text: &str, at: usize) -> usize {
    text.as_bytes()[..at].iter().filter(|&&byte| byte == b'\n').count() + 1
}

#[cfg(test)]
mod tests {
    use super::{line_of, mask, tokens, without_test_modules};

    #[test]
    fn comments_strings_and_characters_vanish_and_code_stays() {
        let source = "let a = \"x // \\\" y\"; // z\n/* a /* b */ c */ let r#b = r#\"q\"# ; 'l: b'x' '\\'' \u{e9}";
        let masked = mask(source);
        assert_eq!(masked.len(), source.len());
        for gone in ["x", "y", "z", "c", "q"] {
            assert!(!tokens(&masked).iter().any(|(_, token)| *token == gone), "{gone}: {masked}");
        }
        for kept in ["let", "a", "b", "l", "\u{e9}"] {
            assert!(tokens(&masked).iter().any(|(_, token)| *token == kept), "{kept}: {masked}");
        }
    }

    #[test]
    fn test_modules_are_left_out() {
        let masked = "fn a() {}\n#[cfg(test)]\nmod tests { fn b() {} }\nfn c() {}";
        let kept = without_test_modules(masked);
        assert!(kept.contains("fn a") && kept.contains("fn c") && !kept.contains("fn b"));
        assert_eq!(line_of(&kept, kept.find("fn c").unwrap()), 4);
        // A `use` under cfg(test) is not a module.
        let masked = "#[cfg(test)]\nuse x;\nmod y { z }";
        assert_eq!(without_test_modules(masked), masked);
    }
}
