//! Bodies: by length, in chunks with trailers, or until the connection closes (RFC 9112 §6 and §7).

use std::ops::Range;

use super::Error;

/// How the end of a body is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// There is none.
    Empty,
    /// This many bytes, never 0.
    Length(u64),
    /// Chunks.
    Chunked,
    /// All until the peer closes; also what follows an upgrade.
    UntilClose,
}

/// What is next in a body. Ranges index the input of the call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BodyEvent {
    /// Content.
    Data(Range<usize>),
    /// The trailer fields of a chunked body, without the empty line; the body is over.
    Trailers(Range<usize>),
    /// The body is over.
    End,
    /// All input is used up (or is the start of something that is not whole yet).
    NeedMore,
}

/// Takes the framing off a body. One per message; keeps no data.
#[derive(Clone, Debug)]
pub struct BodyDecoder {
    state: State,
    limit: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Length(u64),
    UntilClose,
    /// In the digits of a chunk size: value so far, and whether there was a digit.
    Size(u64, bool),
    /// White space after the digits.
    SizeSpace(u64),
    Extension(u64),
    /// The line feed after size and extensions.
    SizeLineFeed(u64),
    Data(u64),
    DataReturn,
    DataLineFeed,
    /// After the last chunk; that many bytes were looked at without finding the end.
    Trailers(usize),
    Done,
}

impl BodyDecoder {
    /// `trailer_bytes` is the most that trailers may take.
    pub fn new(framing: Framing, trailer_bytes: usize) -> BodyDecoder {
        let state = match framing {
            Framing::Empty | Framing::Length(0) => State::Done,
            Framing::Length(length) => State::Length(length),
            Framing::Chunked => State::Size(0, false),
            Framing::UntilClose => State::UntilClose,
        };
        BodyDecoder {
            state,
            limit: trailer_bytes,
        }
    }

    /// Whether the whole body has been seen.
    pub fn is_done(&self) -> bool {
        self.state == State::Done
    }

    /// Whether the peer may close here without having cut the body short.
    pub fn may_end_here(&self) -> bool {
        matches!(self.state, State::Done | State::UntilClose)
    }

    /// Looks at `input` and says how many of its bytes are done with, and what they were. Bytes that are not consumed
    /// must be given again, with more behind them.
    pub fn decode(&mut self, input: &[u8]) -> Result<(usize, BodyEvent), Error> {
        match &mut self.state {
            State::Done => Ok((0, BodyEvent::End)),
            State::Length(left) => {
                let take = (*left).min(input.len() as u64);
                *left -= take;
                if *left == 0 {
                    self.state = State::Done;
                }
                Ok(data(0, take as usize))
            }
            State::UntilClose => Ok(data(0, input.len())),
            _ => self.decode_chunked(input),
        }
    }

    fn decode_chunked(&mut self, input: &[u8]) -> Result<(usize, BodyEvent), Error> {
        let mut at = 0;
        loop {
            if let State::Data(left) = self.state {
                let take = left.min((input.len() - at) as u64);
                if take == 0 {
                    return Ok((at, BodyEvent::NeedMore));
                }
                self.state = if left == take {
                    State::DataReturn
                } else {
                    State::Data(left - take)
                };
                return Ok(data(at, take as usize));
            }
            if let State::Trailers(seen) = self.state {
                let (used, event) = self.trailers(input.get(at..).unwrap_or_default(), seen)?;
                return Ok((
                    at + used,
                    match event {
                        BodyEvent::Trailers(range) => {
                            BodyEvent::Trailers(range.start + at..range.end + at)
                        }
                        other => other,
                    },
                ));
            }
            let Some(&byte) = input.get(at) else {
                return Ok((at, BodyEvent::NeedMore));
            };
            at += 1;
            self.state = match (self.state, byte) {
                (State::Size(size, _), b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F') => {
                    let digit = char::from(byte).to_digit(16).unwrap_or_default();
                    let size = size.checked_mul(16).ok_or(Error::Codec)?;
                    State::Size(size | u64::from(digit), true)
                }
                (State::Size(size, true) | State::SizeSpace(size), b' ' | b'\t') => {
                    State::SizeSpace(size)
                }
                (State::Size(size, true) | State::SizeSpace(size), b';') => State::Extension(size),
                (
                    State::Size(size, true) | State::SizeSpace(size) | State::Extension(size),
                    b'\r',
                ) => State::SizeLineFeed(size),
                // A bare line feed or a control character inside an extension is how chunks are smuggled.
                (State::Extension(size), 0x20..=0x7e | b'\t' | 0x80..) => State::Extension(size),
                (State::SizeLineFeed(0), b'\n') => State::Trailers(0),
                (State::SizeLineFeed(size), b'\n') => State::Data(size),
                (State::DataReturn, b'\r') => State::DataLineFeed,
                (State::DataLineFeed, b'\n') => State::Size(0, false),
                _ => return Err(Error::Codec),
            };
        }
    }

    /// Trailers are given whole or not at all, so that the caller needs no buffer for half of them.
    fn trailers(&mut self, input: &[u8], seen: usize) -> Result<(usize, BodyEvent), Error> {
        if input.starts_with(b"\r\n") {
            self.state = State::Done;
            return Ok((2, BodyEvent::End));
        }
        let fresh = input.get(seen..).unwrap_or_default();
        if memchr::memchr(b'\n', fresh).is_some() {
            let mut space = [httparse::EMPTY_HEADER; 100];
            match httparse::parse_headers(input, &mut space) {
                Ok(httparse::Status::Complete((len, _))) if len <= self.limit => {
                    self.state = State::Done;
                    let empty_line = if input
                        .get(..len)
                        .is_some_and(|block| block.ends_with(b"\r\n"))
                    {
                        2
                    } else {
                        1
                    };
                    return Ok((len, BodyEvent::Trailers(0..len - empty_line)));
                }
                Ok(httparse::Status::Complete(_)) => return Err(Error::HeadersTooLarge),
                Ok(httparse::Status::Partial) => {}
                Err(httparse::Error::TooManyHeaders) => return Err(Error::TooManyHeaders),
                Err(_) => return Err(Error::Codec),
            }
        }
        if input.len() > self.limit {
            return Err(Error::HeadersTooLarge);
        }
        self.state = State::Trailers(input.len());
        Ok((0, BodyEvent::NeedMore))
    }
}

fn data(start: usize, len: usize) -> (usize, BodyEvent) {
    match len {
        0 => (start, BodyEvent::NeedMore),
        _ => (start + len, BodyEvent::Data(start..start + len)),
    }
}

/// The fields of a trailer block that [`BodyEvent::Trailers`] pointed at.
pub struct Trailers;

impl Trailers {
    /// Calls `each` with name and value of every field.
    pub fn for_each(block: &[u8], mut each: impl FnMut(&[u8], &[u8])) -> Result<(), Error> {
        let mut whole = Vec::with_capacity(block.len() + 2);
        whole.extend_from_slice(block);
        whole.extend_from_slice(b"\r\n");
        let mut space = [httparse::EMPTY_HEADER; 100];
        match httparse::parse_headers(&whole, &mut space) {
            Ok(httparse::Status::Complete((_, fields))) => {
                fields
                    .iter()
                    .for_each(|field| each(field.name.as_bytes(), field.value));
                Ok(())
            }
            _ => Err(Error::Codec),
        }
    }
}
