//! A session whose lease is a stream: while the stream lives, the session does, and for its own time afterwards, so that a client
//! that comes back finds everything as it was.

use std::time::Duration;

use api::mesh::registry::v1 as pb;
use futures_util::stream;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};
use tonic::{Status, Streaming};

use super::{SessionStream, session_named};
use crate::access::Caller;
use crate::error::Error;
use crate::gate::{Api, Entry, Scope, Verb};
use crate::model::DEFAULT_TTL;
use crate::sessions::{SessionClaim, SessionState};

/// How long the first request may take.
const FIRST: Duration = Duration::from_secs(10);
/// Answers that a client need not have read.
const UNREAD: usize = 16;
/// Longer promises are none that anybody waits for.
const SILENCE_MAX: Duration = Duration::from_secs(24 * 60 * 60);
/// Renewals within the time of a session.
const RENEWALS: u32 = 3;

/// A session and the stream that keeps it.
struct Kept {
    api: Api,
    caller: Caller,
    claim: SessionClaim,
    ttl: Duration,
    /// A stream on which nothing comes for so long is broken.
    silence: Option<Duration>,
}

/// Opens a session, or takes one up, as the first request says, and keeps it.
pub(super) async fn serve(
    api: Api,
    caller: Caller,
    mut requests: Streaming<pb::SessionRequest>,
) -> Result<SessionStream, Status> {
    let first = tokio::time::timeout(FIRST, requests.message()).await;
    let first = first.map_err(|_| Status::deadline_exceeded("no request came"))??;
    let first = first.ok_or_else(|| Status::invalid_argument("no request came"))?;
    let silence = Duration::from_millis(first.heartbeat_ms).min(SILENCE_MAX);
    let silence = (!silence.is_zero()).then_some(silence);
    let ttl = match first.ttl_ms {
        0 => DEFAULT_TTL,
        ms => Duration::from_millis(ms),
    };
    let (claim, state) = begin(&api, &caller, &first.id, ttl)
        .await
        .map_err(Status::from)?;
    let kept = Kept {
        api,
        caller,
        claim,
        ttl: state.ttl,
        silence,
    };
    let (answers, unread) = mpsc::channel(UNREAD);
    // There is room for the first.
    let _ = answers.try_send(Ok(kept.answer(state)));
    if first.close {
        kept.close(&answers).await;
    } else {
        tokio::spawn(kept.keep(requests, answers));
    }
    let answers = stream::unfold(unread, |mut unread| async move {
        let answer = unread.recv().await?;
        Some((answer, unread))
    });
    Ok(Box::pin(answers))
}

fn enter<'a>(
    api: &'a Api,
    caller: &Caller,
    verb: Verb,
    claim: Option<&SessionClaim>,
) -> Result<Entry<'a>, Error> {
    let objects = || claim.map(|claim| format!("{:?}", claim.id)).into_iter();
    api.enter(caller, verb, Scope::Somewhere, objects)
}

async fn begin(
    api: &Api,
    caller: &Caller,
    id: &str,
    ttl: Duration,
) -> Result<(SessionClaim, SessionState), Error> {
    if id.is_empty() {
        let entry = enter(api, caller, Verb::OpenSession, None)?;
        let opened = api.registry.open_session(caller.name().into(), ttl).await;
        let claim = caller.claim(entry.end(opened)?);
        return Ok((claim, SessionState { ttl, instances: 0 }));
    }
    let id = session_named(id)
        .map_err(|status| Error::Invalid(base::FieldError::new(status.message())))?;
    let claim = caller.claim(id);
    let entry = enter(api, caller, Verb::RenewSession, Some(&claim))?;
    let state = entry.end(api.registry.renew_session(claim.clone()).await)?;
    Ok((claim, state))
}

impl Kept {
    fn answer(&self, state: SessionState) -> pb::SessionResponse {
        pb::SessionResponse {
            id: self.claim.id.to_string(),
            ttl_ms: crate::convert::ttl_ms(Some(state.ttl)),
            instances: state.instances as u64,
        }
    }

    /// Keeps the session until the stream breaks.
    async fn keep(
        self,
        mut requests: Streaming<pb::SessionRequest>,
        answers: mpsc::Sender<Result<pb::SessionResponse, Status>>,
    ) {
        let mut heard = Instant::now();
        let mut renew = tokio::time::interval(self.ttl / RENEWALS);
        loop {
            let broken = self.silence.map(|silence| heard + silence);
            tokio::select! {
                request = requests.message() => match request {
                    Ok(Some(request)) if request.close => {
                        self.close(&answers).await;
                        return;
                    }
                    Ok(Some(_)) => {
                        heard = Instant::now();
                        if !self.renew(&answers, true).await {
                            return;
                        }
                    }
                    // Whether it was meant or not: the client has the session's time to come back.
                    Ok(None) | Err(_) => break,
                },
                _ = renew.tick() => {
                    if !self.renew(&answers, false).await {
                        return;
                    }
                }
                () = answers.closed() => break,
                () = until(broken), if broken.is_some() => break,
            }
        }
        // Its time begins when the stream has ended.
        let _ = self.api.registry.renew_session(self.claim).await;
    }

    /// Whether the session goes on.
    async fn renew(
        &self,
        answers: &mpsc::Sender<Result<pb::SessionResponse, Status>>,
        is_asked: bool,
    ) -> bool {
        let renewed = match enter(
            &self.api,
            &self.caller,
            Verb::RenewSession,
            Some(&self.claim),
        ) {
            Ok(entry) => entry.end(self.api.registry.renew_session(self.claim.clone()).await),
            Err(error) => Err(error),
        };
        let answer = match renewed {
            Ok(state) => Ok(self.answer(state)),
            // Too many wait for the writer, or the store is away: the next renewal is early enough.
            Err(Error::Overloaded(_) | Error::Unreachable(_)) => return true,
            Err(error) => Err(Status::from(error)),
        };
        let goes_on = answer.is_ok();
        if is_asked || !goes_on {
            // Who does not read its answers is alive all the same.
            let _ = answers.try_send(answer);
        }
        goes_on
    }

    async fn close(&self, answers: &mpsc::Sender<Result<pb::SessionResponse, Status>>) {
        let closed = match enter(
            &self.api,
            &self.caller,
            Verb::CloseSession,
            Some(&self.claim),
        ) {
            Ok(entry) => entry.end(self.api.registry.close_session(self.claim.clone()).await),
            Err(error) => Err(error),
        };
        let answer = match closed {
            Ok(done) => Ok(self.answer(SessionState {
                ttl: self.ttl,
                instances: done.result,
            })),
            Err(error) => Err(Status::from(error)),
        };
        let _ = answers.try_send(answer);
    }
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => std::future::pending().await,
    }
}
