//! multipart/form-data as LangSmith wants it: every part has a name and a length, and the lengths are true.

/// One part, its body as it stands in the request.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Part<'a> {
    pub(super) name: &'a str,
    /// Without parameters.
    pub(super) media_type: &'a str,
    pub(super) body: &'a [u8],
}

/// Parts are counted from 1; a part with a name is called by it.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(super) enum MultipartError {
    #[error("content-type must be multipart/form-data with a boundary")]
    ContentType,
    #[error("error reading multipart data: multipart: NextPart: EOF")]
    Eof,
    #[error("body does not begin with the boundary")]
    NoBoundary,
    #[error("part {0}: header is not `Name: value` in ASCII")]
    Header(String),
    #[error("part {0}: no Content-Disposition: form-data; name=\"…\"")]
    NoName(usize),
    #[error("part {0}: no Content-Type")]
    NoType(String),
    #[error("part {0}: no Content-Length header and no length parameter of the Content-Type")]
    NoLength(String),
    #[error("part {0}: length {1:?} is not a number")]
    BadLength(String, String),
    #[error("part {0}: no boundary follows after its length of {1} bytes")]
    WrongLength(String, usize),
    #[error("part {0}: Content-Encoding is not allowed on a part")]
    Encoded(String),
    #[error("{0} bytes follow the closing boundary")]
    Trailing(usize),
    #[error("no parts")]
    Empty,
}

/// # Errors
/// At the first thing wrong.
pub(super) fn parse<'a>(content_type: &str, body: &'a [u8]) -> Result<Vec<Part<'a>>, MultipartError> {
    let boundary = boundary(content_type).ok_or(MultipartError::ContentType)?;
    let delimiter = format!("--{boundary}");
    let delimiter = delimiter.as_bytes();
    let mut rest = body.strip_prefix(delimiter).ok_or(match body {
        [] => MultipartError::Eof,
        _ => MultipartError::NoBoundary,
    })?;
    let mut parts = Vec::new();
    loop {
        if let Some(trailing) = rest.strip_prefix(b"--") {
            return match trailing.strip_prefix(b"\r\n").unwrap_or(trailing) {
                [] if parts.is_empty() => Err(MultipartError::Empty),
                [] => Ok(parts),
                more => Err(MultipartError::Trailing(more.len())),
            };
        }
        let content = rest.strip_prefix(b"\r\n").ok_or(MultipartError::Eof)?;
        let (part, behind) = part(content, parts.len() + 1, delimiter)?;
        parts.push(part);
        rest = behind;
    }
}

fn boundary(content_type: &str) -> Option<&str> {
    let (media_type, parameters) = content_type.split_once(';')?;
    let boundary = parameter(parameters, "boundary")?;
    let fits = (1..=70).contains(&boundary.len());
    (media_type.trim().eq_ignore_ascii_case("multipart/form-data") && fits).then_some(boundary)
}

/// No quoted semicolons: neither boundaries nor the names used here hold any.
fn parameter<'a>(parameters: &'a str, name: &str) -> Option<&'a str> {
    parameters.split(';').find_map(|parameter| {
        let (key, value) = parameter.trim().split_once('=')?;
        key.trim().eq_ignore_ascii_case(name).then(|| value.trim().trim_matches('"'))
    })
}

#[derive(Default)]
struct Head<'a> {
    name: Option<&'a str>,
    content_type: Option<&'a str>,
    length: Option<&'a str>,
    encoded: bool,
}

fn part<'a>(content: &'a [u8], number: usize, delimiter: &[u8]) -> Result<(Part<'a>, &'a [u8]), MultipartError> {
    let (head, body) = split_at_blank_line(content).ok_or(MultipartError::Eof)?;
    let head = parse_head(head, number)?;
    let name = head.name.ok_or(MultipartError::NoName(number))?;
    let called = || name.to_owned();
    let content_type = head.content_type.ok_or_else(|| MultipartError::NoType(called()))?;
    let (media_type, parameters) = content_type.split_once(';').unwrap_or((content_type, ""));
    if head.encoded {
        return Err(MultipartError::Encoded(called()));
    }
    let length = head.length.or_else(|| parameter(parameters, "length"));
    let length = length.ok_or_else(|| MultipartError::NoLength(called()))?;
    let length: usize = length.parse().map_err(|_| MultipartError::BadLength(called(), length.to_owned()))?;
    let (body, behind) = body.split_at_checked(length).ok_or(MultipartError::Eof)?;
    if behind.len() < delimiter.len() + 4 {
        return Err(MultipartError::Eof);
    }
    let behind = behind.strip_prefix(b"\r\n").and_then(|behind| behind.strip_prefix(delimiter));
    let behind = behind.ok_or_else(|| MultipartError::WrongLength(called(), length))?;
    Ok((Part { name, media_type: media_type.trim(), body }, behind))
}

fn split_at_blank_line(content: &[u8]) -> Option<(&[u8], &[u8])> {
    let at = content.windows(4).position(|window| window == b"\r\n\r\n")?;
    let (head, rest) = content.split_at_checked(at)?;
    Some((head, rest.get(4..)?))
}

fn parse_head(head: &[u8], number: usize) -> Result<Head<'_>, MultipartError> {
    let bad = || MultipartError::Header(number.to_string());
    let mut parsed = Head::default();
    for line in std::str::from_utf8(head).map_err(|_| bad())?.split("\r\n") {
        let (name, value) = line.split_once(':').filter(|(name, _)| name.is_ascii()).ok_or_else(bad)?;
        let value = value.trim();
        match name.to_ascii_lowercase().as_str() {
            "content-disposition" => {
                let parameters = value.strip_prefix("form-data").ok_or(MultipartError::NoName(number))?;
                parsed.name = parameter(parameters, "name").filter(|name| !name.is_empty());
            }
            "content-type" => parsed.content_type = Some(value),
            "content-length" => parsed.length = Some(value),
            "content-encoding" => parsed.encoded = true,
            _ => {}
        }
    }
    Ok(parsed)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TYPE: &str = "multipart/form-data; boundary=B";

    fn body(headers: &str, content: &str) -> String {
        format!("--B\r\n{headers}\r\n\r\n{content}\r\n--B--\r\n")
    }

    fn refused(body: &str) -> String {
        parse(TYPE, body.as_bytes()).unwrap_err().to_string()
    }

    const NAME: &str = "Content-Disposition: form-data; name=\"post.1\"";

    #[test]
    fn both_ways_to_give_a_length_are_accepted_even_around_a_boundary() {
        let content = "x\r\n--B\r\ny";
        for length in
            ["Content-Type: application/json\r\nContent-Length: 9", "Content-Type: application/json; length=9"]
        {
            let text = body(&format!("{NAME}\r\n{length}"), content);
            let parts = parse("multipart/form-data; boundary=\"B\"", text.as_bytes()).unwrap();
            let expected = Part { name: "post.1", media_type: "application/json", body: content.as_bytes() };
            assert_eq!(parts, [expected]);
        }
    }

    #[test]
    fn each_defect_is_named() {
        let json = "Content-Type: application/json";
        let table = [
            (body(json, "{}"), "part 1: no Content-Disposition"),
            (body(&format!("{NAME}\r\nContent-Length: 2"), "{}"), "part post.1: no Content-Type"),
            (body(&format!("{NAME}\r\n{json}"), "{}"), "part post.1: no Content-Length"),
            (body(&format!("{NAME}\r\n{json}; length=two"), "{}"), "\"two\" is not a number"),
            (body(&format!("{NAME}\r\n{json}; length=1"), "{}"), "no boundary follows after its length of 1"),
            (body(&format!("{NAME}\r\n{json}; length=3"), "{}"), "no boundary follows after its length of 3"),
            (body(&format!("{NAME}\r\n{json}; length=900"), "{}"), "NextPart: EOF"),
            (body(&format!("{NAME}\r\n{json}; length=2\r\nContent-Encoding: gzip"), "{}"), "Content-Encoding"),
            (body(&format!("{NAME}\r\nnonsense"), "{}"), "header is not"),
            (body(&format!("{NAME}\r\n{json}; length=2"), "{}") + "more", "4 bytes follow"),
            ("--B--\r\n".into(), "no parts"),
            ("--C\r\n".into(), "does not begin with the boundary"),
            (String::new(), "NextPart: EOF"),
        ];
        for (body, complaint) in table {
            let error = refused(&body);
            assert!(error.contains(complaint), "{error} for {body}");
        }
        assert_eq!(parse("application/json", b""), Err(MultipartError::ContentType));
    }

    #[test]
    fn a_body_cut_anywhere_is_refused() {
        let whole = body(&format!("{NAME}\r\nContent-Type: application/json; length=2"), "{}");
        // The last CRLF may be missing.
        for end in 0..whole.len() - 2 {
            assert!(parse(TYPE, &whole.as_bytes()[..end]).is_err(), "{end}");
        }
    }
}
