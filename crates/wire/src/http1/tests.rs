//! Tables of good and bad messages; any split of the input gives the same result; random bytes never panic.
#![allow(clippy::type_complexity, reason = "tables of cases")]

use proptest::prelude::*;

use super::*;

fn request(bytes: &[u8]) -> Result<(RequestHead, usize), Error> {
    let mut head = RequestHead::default();
    match head.parse(bytes, &Limits::default())? {
        Parse::Complete(len) => Ok((head, len)),
        Parse::Partial => panic!("partial: {:?}", String::from_utf8_lossy(bytes)),
    }
}

fn with_header(header: &str) -> Vec<u8> {
    format!("POST /b HTTP/1.1\r\nHost: a.example\r\n{header}\r\n\r\n").into_bytes()
}

#[test]
fn indexes_a_request_without_copying() {
    let bytes = b"\r\nGET /b?x=1 HTTP/1.1\r\nHost: a.example\r\nX-E:\r\nX-G:  v \t\r\nConnection: close, x-foo\r\n\r\nrest";
    let (head, len) = request(bytes).unwrap();
    assert_eq!(&bytes[len..], b"rest");
    assert_eq!(head.method.of(bytes), b"GET");
    assert_eq!(head.path.of(bytes), b"/b?x=1");
    assert_eq!(head.authority.unwrap().of(bytes), b"a.example");
    assert_eq!(head.headers.len(), 4);
    assert_eq!(head.headers[1].value.of(bytes), b"");
    assert_eq!(head.headers[2].value.of(bytes), b"v");
    assert_eq!(
        head.connection(),
        Connection {
            close: true,
            nominates: true,
            ..Connection::default()
        }
    );
    assert!(!head.keeps_alive());
    assert_eq!(head.framing(), Framing::Empty);
}

#[test]
fn splits_targets_as_envoy_does() {
    let cases: &[(&str, Result<(&str, &str), Error>)] = &[
        ("GET /b", Ok(("a.example", "/b"))),
        (
            "GET http://other.example/b?x",
            Ok(("other.example", "/b?x")),
        ),
        ("GET HTTPS://other.example", Ok(("other.example", ""))),
        ("GET http://other.example?x", Ok(("other.example", "?x"))),
        ("OPTIONS *", Ok(("a.example", "*"))),
        ("CONNECT b:80", Ok(("b:80", ""))),
        ("GET *", Err(Error::InvalidUrl)),
        ("GET b", Err(Error::Codec)),
        ("GET ftp://other.example/b", Err(Error::InvalidScheme)),
        ("GET http:///b", Err(Error::InvalidAuthority)),
        ("CONNECT /b", Err(Error::InvalidUrl)),
        ("GET /b\u{ff}", Err(Error::Codec)),
        ("GET /b\u{1}", Err(Error::InvalidCharacters)),
        ("GET /b\u{7f}", Err(Error::InvalidCharacters)),
        ("GET /b\0", Err(Error::InvalidCharacters)),
        ("get /b", Err(Error::Codec)),
        ("FOO /b", Err(Error::Codec)),
        ("GET /b c", Err(Error::Codec)),
        ("GET  /b", Err(Error::Codec)),
        (" GET /b", Err(Error::Codec)),
    ];
    for (line, expected) in cases {
        let bytes = format!("{line} HTTP/1.1\r\nHost: a.example\r\n\r\n").into_bytes();
        let got = request(&bytes).map(|(head, _)| {
            (
                head.authority.unwrap().of(&bytes).to_vec(),
                head.path.of(&bytes).to_vec(),
            )
        });
        let want = expected.map(|(a, p)| (a.as_bytes().to_vec(), p.as_bytes().to_vec()));
        assert_eq!(got, want, "{line:?}");
    }
}

#[test]
fn answers_other_versions_with_426() {
    for line in [
        "GET /b HTTP/1.0",
        "GET /b HTTP/1.2",
        "GET /b HTTP/2.0",
        "GET /b",
    ] {
        let bytes = format!("{line}\r\nHost: a\r\n\r\n").into_bytes();
        assert_eq!(request(&bytes).map(|_| ()), Err(Error::Version), "{line}");
        assert_eq!(Error::Version.status(), 426);
    }
    let lower = request(b"GET /b http/1.1\r\nHost: a\r\n\r\n").map(|_| ());
    assert_eq!(lower, Err(Error::Codec));
    let limits = Limits {
        http_10: true,
        ..Limits::default()
    };
    let mut head = RequestHead::default();
    assert!(head.parse(b"GET /b HTTP/1.0\r\n\r\n", &limits).is_ok());
    assert!(!head.keeps_alive());
}

/// The first half is what real Envoy answered; the second is the list of framing bugs that HTTP libraries had.
#[test]
fn refuses_what_smuggles() {
    let cases: &[(&str, Result<Framing, Error>)] = &[
        ("Content-Length: 2", Ok(Framing::Length(2))),
        ("Content-Length: 002", Ok(Framing::Length(2))),
        ("Content-Length: 2 ", Ok(Framing::Length(2))),
        ("Content-Length: 0", Ok(Framing::Empty)),
        (
            "Content-Length: 18446744073709551615",
            Ok(Framing::Length(u64::MAX)),
        ),
        ("Content-Length: 18446744073709551616", Err(Error::Codec)),
        ("Content-Length: +2", Err(Error::Codec)),
        ("Content-Length: -2", Err(Error::Codec)),
        ("Content-Length: 0x2", Err(Error::Codec)),
        ("Content-Length: 2 2", Err(Error::Codec)),
        ("Content-Length: 2, 2", Err(Error::Codec)),
        ("Content-Length: ", Err(Error::Codec)),
        ("Content-Length: 2\r\nContent-Length: 2", Err(Error::Codec)),
        ("Content-Length: 2\r\ncontent-length: 3", Err(Error::Codec)),
        ("Transfer-Encoding: chunked", Ok(Framing::Chunked)),
        ("Transfer-Encoding: Chunked", Ok(Framing::Chunked)),
        ("Transfer-Encoding: xchunked", Err(Error::TransferEncoding)),
        (
            "Transfer-Encoding: chunked, chunked",
            Err(Error::TransferEncoding),
        ),
        (
            "Transfer-Encoding: identity, chunked",
            Err(Error::TransferEncoding),
        ),
        (
            "Transfer-Encoding: chunked, gzip",
            Err(Error::TransferEncoding),
        ),
        ("Transfer-Encoding: identity", Err(Error::TransferEncoding)),
        ("Transfer-Encoding: ", Err(Error::TransferEncoding)),
        (
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
            Err(Error::TransferEncoding),
        ),
        (
            "Transfer-Encoding: chunked\r\nContent-Length: 7",
            Err(Error::LengthAndChunked),
        ),
        (
            "Content-Length: 7\r\nTransfer-Encoding: chunked",
            Err(Error::LengthAndChunked),
        ),
        ("Transfer-Encoding : chunked", Err(Error::Codec)),
        ("Transfer-Encoding:\r\n chunked", Err(Error::Codec)),
        (
            "Transfer-Encoding\u{b}: chunked",
            Err(Error::InvalidCharacters),
        ),
        ("X: a\r\n b", Err(Error::Codec)),
        ("X: a\rY: b", Err(Error::Codec)),
        ("X: a\0b", Err(Error::InvalidCharacters)),
        ("X: a\u{7f}b", Err(Error::InvalidCharacters)),
        ("X\0y: a", Err(Error::InvalidCharacters)),
        ("X(y: a", Err(Error::Codec)),
        (": a", Err(Error::Codec)),
        ("Xy", Err(Error::Codec)),
        ("Host: b", Err(Error::InvalidAuthority)),
        ("x_y: a\tb", Ok(Framing::Empty)),
    ];
    for (header, expected) in cases {
        let got = request(&with_header(header)).map(|(head, _)| head.framing());
        assert_eq!(got, *expected, "{header:?}");
    }
    for host in ["a b", "a/b"] {
        let bytes = format!("GET /b HTTP/1.1\r\nHost: {host}\r\n\r\n").into_bytes();
        assert_eq!(request(&bytes).map(|_| ()), Err(Error::InvalidAuthority));
    }
}

#[test]
fn holds_its_limits() {
    let big = with_header(&format!("X: {}", "a".repeat(62_000)));
    assert_eq!(request(&big).map(|_| ()), Err(Error::HeadersTooLarge));
    let mut head = RequestHead::default();
    let unfinished = head.parse(&big[..big.len() - 4], &Limits::default());
    assert_eq!(unfinished, Err(Error::HeadersTooLarge));
    assert!(request(&with_header(&format!("X: {}", "a".repeat(60_000)))).is_ok());
    assert!(request(&with_header(&["X: a"; 99].join("\r\n"))).is_ok());
    assert_eq!(
        request(&with_header(&["X: a"; 100].join("\r\n"))).map(|_| ()),
        Err(Error::TooManyHeaders)
    );
    assert_eq!(
        head.parse(
            b"\x16\x03\x01\x00\x00garbage-without-an-end",
            &Limits::default()
        ),
        Err(Error::InvalidCharacters)
    );
}

#[test]
fn frames_responses() {
    let cases: &[(&str, bool, Result<Framing, Error>)] = &[
        ("200 OK\r\nContent-Length: 2", false, Ok(Framing::Length(2))),
        ("200 OK\r\nContent-Length: 2", true, Ok(Framing::Empty)),
        (
            "200 OK\r\nTransfer-Encoding: chunked",
            true,
            Ok(Framing::Empty),
        ),
        ("200", false, Ok(Framing::UntilClose)),
        (
            "304 Not Modified\r\nContent-Length: 5",
            false,
            Ok(Framing::Empty),
        ),
        ("204 No Content", false, Ok(Framing::Empty)),
        ("100 Continue", false, Ok(Framing::Empty)),
        (
            "200 OK\r\nTransfer-Encoding: gzip",
            false,
            Err(Error::TransferEncoding),
        ),
        (
            "200 OK\r\nContent-Length: 2\r\nContent-Length: 3",
            false,
            Err(Error::Codec),
        ),
        (
            "200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked",
            false,
            Err(Error::LengthAndChunked),
        ),
        ("20 OK", false, Err(Error::Codec)),
    ];
    for (line, to_head, expected) in cases {
        let bytes = format!("HTTP/1.1 {line}\r\n\r\n").into_bytes();
        let mut head = ResponseHead::default();
        let got = head
            .parse(&bytes, &Limits::default())
            .map(|_| head.framing(*to_head));
        assert_eq!(got, *expected, "{line:?}");
    }
}

/// Decodes `input`, given in pieces that end at `cuts`.
fn decode(
    framing: Framing,
    input: &[u8],
    cuts: &[usize],
) -> Result<(Vec<u8>, Vec<u8>, usize), Error> {
    let mut decoder = BodyDecoder::new(framing, 1024);
    let (mut body, mut trailers) = (Vec::new(), Vec::new());
    let (mut from, mut given) = (0, 0);
    let mut cuts: Vec<usize> = cuts.iter().map(|c| c % (input.len() + 1)).collect();
    cuts.push(input.len());
    cuts.sort_unstable();
    for cut in cuts {
        given = given.max(cut);
        loop {
            let piece = &input[from..given];
            let (used, event) = decoder.decode(piece)?;
            from += used;
            match event {
                BodyEvent::Data(range) => body.extend_from_slice(&piece[range]),
                BodyEvent::Trailers(range) => trailers.extend_from_slice(&piece[range]),
                BodyEvent::End => return Ok((body, trailers, from)),
                BodyEvent::NeedMore => break,
            }
        }
    }
    Ok((body, trailers, from))
}

#[test]
fn decodes_chunks() {
    let cases: &[(&str, Result<(&str, &str), Error>)] = &[
        ("2\r\nhi\r\n0\r\n\r\n", Ok(("hi", ""))),
        ("2;a=b\r\nhi\r\n0;c\r\n\r\n", Ok(("hi", ""))),
        ("2 \r\nhi\r\n0\r\n\r\n", Ok(("hi", ""))),
        ("0000000000000000002\r\nhi\r\n0\r\n\r\n", Ok(("hi", ""))),
        ("2\r\nhi\r\n0\r\nX-T: 1\r\n\r\n", Ok(("hi", "X-T: 1\r\n"))),
        ("A\r\n0123456789\r\n00\r\n\r\n", Ok(("0123456789", ""))),
        ("2;a=\"\r\"\r\nhi\r\n0\r\n\r\n", Err(Error::Codec)),
        ("2;a\nhi\r\n0\r\n\r\n", Err(Error::Codec)),
        ("2\nhi\n0\n\n", Err(Error::Codec)),
        ("zz\r\n", Err(Error::Codec)),
        (" 2\r\nhi\r\n", Err(Error::Codec)),
        ("0x2\r\nhi\r\n", Err(Error::Codec)),
        ("-2\r\nhi\r\n", Err(Error::Codec)),
        ("fffffffffffffffff\r\nhi", Err(Error::Codec)),
        ("\r\nhi\r\n0\r\n\r\n", Err(Error::Codec)),
        (";a\r\nhi", Err(Error::Codec)),
        ("2\r\nhiX\r\n0\r\n\r\n", Err(Error::Codec)),
        ("2\r\nhi\r\n0\r\nX T: 1\r\n\r\n", Err(Error::Codec)),
    ];
    for (input, expected) in cases {
        let got = decode(Framing::Chunked, input.as_bytes(), &[]);
        let want =
            expected.map(|(b, t)| (b.as_bytes().to_vec(), t.as_bytes().to_vec(), input.len()));
        assert_eq!(got, want, "{input:?}");
    }
    let endless = format!("0\r\nX-T: {}", "a".repeat(2000));
    assert_eq!(
        decode(Framing::Chunked, endless.as_bytes(), &[]),
        Err(Error::HeadersTooLarge)
    );
}

#[test]
fn knows_where_a_body_may_end() {
    let mut cut_short = BodyDecoder::new(Framing::Length(3), 0);
    assert_eq!(cut_short.decode(b"ab").unwrap(), (2, BodyEvent::Data(0..2)));
    assert!(!cut_short.may_end_here());
    assert_eq!(cut_short.decode(b"cd").unwrap(), (1, BodyEvent::Data(0..1)));
    assert!(cut_short.is_done());
    assert!(BodyDecoder::new(Framing::UntilClose, 0).may_end_here());
}

fn pieces() -> impl Strategy<Value = Vec<Vec<u8>>> {
    prop::collection::vec(prop::collection::vec(any::<u8>(), 1..40), 0..6)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn chunks_survive_any_split(body in pieces(), cuts in prop::collection::vec(any::<usize>(), 0..8), trailer in any::<bool>()) {
        let mut wire = Vec::new();
        body.iter().for_each(|piece| put_chunk(&mut wire, piece));
        wire.extend_from_slice(if trailer { b"0\r\nx-t: 1\r\n\r\n" } else { LAST_CHUNK });
        let end = wire.len();
        wire.extend_from_slice(b"next");
        let (got, trailers, used) = decode(Framing::Chunked, &wire, &cuts).unwrap();
        prop_assert_eq!(got, body.concat());
        prop_assert_eq!(!trailers.is_empty(), trailer);
        prop_assert_eq!(used, end);
    }

    #[test]
    fn what_is_written_parses_again(
        path in "/[a-z0-9/?=&%._-]{0,40}",
        headers in prop::collection::vec(("x-[a-zA-Z0-9_]{1,12}", "[!-~]([ -~]{0,20}[!-~])?"), 0..20),
    ) {
        let mut wire = Vec::new();
        put_request_line(&mut wire, b"GET", path.as_bytes());
        put_header(&mut wire, b"Host", b"a");
        headers.iter().for_each(|(name, value)| put_header(&mut wire, name.as_bytes(), value.as_bytes()));
        wire.extend_from_slice(b"\r\n");
        let (head, len) = request(&wire).unwrap();
        prop_assert_eq!(len, wire.len());
        prop_assert_eq!(head.path.of(&wire), path.as_bytes());
        for (field, (name, value)) in head.headers.iter().skip(1).zip(&headers) {
            let lower = name.to_ascii_lowercase();
            prop_assert_eq!(field.name.of(&wire), lower.as_bytes());
            prop_assert_eq!(field.value.of(&wire), value.as_bytes());
        }
        for cut in 0..wire.len() {
            let mut partial = RequestHead::default();
            prop_assert_eq!(partial.parse(&wire[..cut], &Limits::default()), Ok(Parse::Partial));
        }
    }

    #[test]
    fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), cuts in prop::collection::vec(any::<usize>(), 0..4)) {
        let _ = RequestHead::default().parse(&bytes, &Limits::default());
        let _ = ResponseHead::default().parse(&bytes, &Limits::default());
        let whole = decode(Framing::Chunked, &bytes, &[]);
        let split = decode(Framing::Chunked, &bytes, &cuts);
        prop_assert_eq!(whole, split);
    }

    #[test]
    fn mutated_requests_never_panic(at in 0usize..70, byte in any::<u8>()) {
        let mut bytes = b"POST /b?x HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: chunked\r\nTE: x\r\n\r\n".to_vec();
        bytes[at] = byte;
        if let Ok(Parse::Complete(len)) = RequestHead::default().parse(&bytes, &Limits::default()) {
            prop_assert!(len <= bytes.len());
        }
    }
}
