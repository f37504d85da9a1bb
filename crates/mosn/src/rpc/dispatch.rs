//! Sending calls: the choice of host and connection, and what happens when a try fails.

use std::rc::Rc;

use wire::frame::Edit;

use super::call::{Attempt, Call, Micros};
use super::headers::{self, Overlay};
use super::protocol::{Change, Class, Outcome, Protocol, Words};
use super::refusal::Refusal;
use super::retry::{Retry, SAFE_TRIES};
use super::upstream::micros;
use super::view::{View, write_path};
use crate::cluster::host::bump;
use crate::cluster::{LbContext, MetadataMatch, Priority, RpcInstance};
use crate::route::{Action, Entry, Forward, HostRewrite};

/// Version and group as the balancer compares them.
fn instance<'a>(words: &'a Words<'_>) -> RpcInstance<'a> {
    RpcInstance {
        version: std::str::from_utf8(&words.version).unwrap_or_default(),
        group: std::str::from_utf8(&words.group).unwrap_or_default(),
    }
}

/// Sends a call for the first time, with the changes that its route makes.
pub(super) fn first<P: Protocol>(
    mut call: Call<P>,
    frame: &[u8],
    words: &Words<'_>,
    entry: Entry<'_>,
    forward: &Forward,
    path: &[u8],
    now: Micros,
) {
    let Some(routed) = &call.route else {
        return;
    };
    let head = call.head;
    let view = View::<P> {
        frame,
        head: &head,
        words,
        path,
    };
    let Some(pick) = forward.choose(&view, routed.random) else {
        return call.refuse(&Refusal::NoCluster, now);
    };
    let mut service = match pick.host_rewrite {
        HostRewrite::None | HostRewrite::Auto => None,
        rewrite => rewrite.rewrite(&view),
    };
    if service.is_none() && forward.rewrites_path() {
        service = forward
            .rewrite_path(path)
            .and_then(|new| Some(new.split(|byte| *byte == b'/').nth(1)?.to_vec().into()));
    }
    let service = service.filter(|service| **service != *words.service);
    if let Some(policy) = &forward.retry {
        call.retry = Some(Box::new(Retry::with_policy(policy)));
    }
    let edits = if entry.has_request_headers(pick.weighted) {
        let mut overlay = Overlay::<P>::new(frame, &head, Some(words));
        let info = call.down.info::<P>(&routed.cluster);
        entry.apply_request_headers(pick.weighted, &mut overlay, &mut |headers, format, out| {
            headers::write_format(&info, headers, format, out);
        });
        overlay.into_edits()
    } else {
        Vec::new()
    };
    let change = Change {
        edits: edits
            .iter()
            .map(headers::Change::as_edit)
            .collect::<Vec<Edit<'_>>>(),
        service,
    };
    let change = (!change.edits.is_empty() || change.service.is_some()).then_some(&change);
    send(
        call,
        frame,
        &instance(words),
        pick.metadata_match,
        change,
        now,
    );
}

fn send<P: Protocol>(
    mut call: Call<P>,
    frame: &[u8],
    rpc: &RpcInstance<'_>,
    metadata_match: Option<&MetadataMatch>,
    change: Option<&Change<'_>>,
    now: Micros,
) {
    let Some(routed) = &call.route else {
        return;
    };
    if now >= call.deadline {
        return call.refuse(&Refusal::Timeout, now);
    }
    let cluster = Rc::clone(&routed.cluster);
    let priority = routed.priority;
    let Some(permit) = cluster.breaker(priority).try_request() else {
        cluster.stats().upstream_rq_pending_overflow.inc();
        return call.refuse(&Refusal::Overflow, now);
    };
    let picked = cluster.pick(&LbContext {
        metadata_match,
        rpc: Some(*rpc),
        avoid: call.retry.as_ref().map_or(&[], |retry| &retry.tried),
    });
    let Some(host) = picked else {
        cluster.stats().upstream_cx_none_healthy.inc();
        return call.refuse(&Refusal::NoHealthyUpstream, now);
    };
    let worker = Rc::clone(&call.down.worker);
    let pool = P::pool(&host.rpc);
    let flavour = P::flavour(&call.head);
    let Some(connection) = pool.get(&worker, &cluster, &host, flavour, priority, now) else {
        return call.refuse(&Refusal::Overflow, now);
    };
    call.attempts += 1;
    if let Some(log) = &mut call.log {
        log.host = Some(Rc::clone(&host));
        log.sent.get_or_insert(now);
    }
    let mut deadline = call.deadline;
    let mut keeps_frame = false;
    if let Some(retry) = &call.retry
        && let Some(policy) = &retry.policy
    {
        keeps_frame = retry.frame.is_empty();
        if let Some(limit) = policy.per_try_timeout {
            deadline = deadline.min(now + micros(limit));
        }
    }
    let attempt = Attempt::new(cluster, host, permit, now);
    let down = Rc::clone(&call.down);
    let mut kept = Vec::new();
    let sent = connection.send(call, attempt, deadline, |call, out| {
        let start = out.len();
        write(call, frame, change, now, out);
        if keeps_frame {
            kept.extend_from_slice(out.get(start..).unwrap_or_default());
        }
    });
    match sent {
        Ok(id) => {
            if keeps_frame {
                connection.keep_frame(id, kept);
            }
            if connection.is_congested() {
                down.congested.set(Some(connection));
            }
        }
        Err(back) => {
            let (mut call, attempt) = *back;
            drop(attempt);
            call.refuse(&Refusal::Overflow, now);
        }
    }
}

/// Appends the frame of a call: copied once, or edited on the way.
fn write<P: Protocol>(
    call: &Call<P>,
    frame: &[u8],
    change: Option<&Change<'_>>,
    now: Micros,
    out: &mut Vec<u8>,
) {
    let start = out.len();
    let edited = change.map(|change| {
        let head = P::head_unchecked(frame).map_err(|error| error.to_string())?;
        P::edit_call(frame, &head, change, out)
    });
    match edited {
        Some(Ok(())) => {}
        Some(Err(error)) => {
            call.down.config.stats.downstream_rq_edit_failed.inc();
            tracing::debug!(protocol = P::NAME, %error, "cannot change the headers of a call");
            out.extend_from_slice(frame);
        }
        None => out.extend_from_slice(frame),
    }
    if call.deadline != Micros::MAX {
        let left = call.deadline.saturating_sub(now).div_ceil(1000);
        let left = u32::try_from(left).unwrap_or(u32::MAX);
        if let Some(copy) = out.get_mut(start..)
            && let Ok(head) = P::head_unchecked(copy)
        {
            P::set_timeout(copy, &head, left);
        }
    }
}

/// Sends a call once more. The frame is as it was sent before.
fn again<P: Protocol>(call: Call<P>, frame: &[u8], now: Micros) {
    let Ok(head) = P::head_unchecked(frame) else {
        return;
    };
    let limits = call.down.config.limits;
    let Ok(words) = P::words(frame, &head, &limits) else {
        return;
    };
    let Some(routed) = &call.route else {
        return;
    };
    let table = Rc::clone(&routed.table);
    let mut metadata_match = None;
    let mut path = Vec::new();
    if let Some(entry) = table.entry(routed.id)
        && let Action::Forward(forward) = &entry.route.action
    {
        write_path(&words, &mut path);
        let view = View::<P> {
            frame,
            head: &head,
            words: &words,
            path: &path,
        };
        metadata_match = forward
            .choose(&view, routed.random)
            .and_then(|pick| pick.metadata_match);
    }
    send(call, frame, &instance(&words), metadata_match, None, now);
}

/// A connection ended before the answer; `frame` is there if the server cannot have seen the call.
pub(super) fn connection_lost<P: Protocol>(
    mut call: Call<P>,
    attempt: Attempt,
    frame: Option<&[u8]>,
    failure: &Refusal,
    now: Micros,
) {
    attempt.failed(failure);
    if call.down.is_closed() && !call.one_way {
        return;
    }
    if let Some(frame) = frame
        && call.attempts < SAFE_TRIES.max(1 + policy_retries(&call))
    {
        let retry = call.retry.get_or_insert_default();
        retry.tried.push(Rc::clone(&attempt.host));
        attempt.cluster.stats().upstream_rq_retry.inc();
        drop(attempt);
        return again(call, frame, now);
    }
    let wants = call
        .retry
        .as_ref()
        .is_some_and(|retry| retry.wants_after_reset());
    if wants && !call.one_way {
        match by_policy(call, attempt, false, now) {
            None => return,
            Some((back, _)) => call = back,
        }
    }
    give_up(call, failure, now);
}

/// Tells the caller that all tries failed.
fn give_up<P: Protocol>(mut call: Call<P>, failure: &Refusal, now: Micros) {
    if let Some(routed) = &call.route {
        routed.cluster.stats().count_response(failure.http());
    }
    call.refuse(failure, now);
}

fn policy_retries<P: Protocol>(call: &Call<P>) -> u32 {
    let policy = call.retry.as_ref().and_then(|retry| retry.policy.as_ref());
    policy.map_or(0, |policy| policy.retries)
}

/// An answer to a call that may be sent again. Gives the call back if the answer goes to the caller.
pub(super) fn retry_answer<P: Protocol>(
    call: Call<P>,
    attempt: Attempt,
    outcome: Outcome,
    now: Micros,
) -> Option<(Call<P>, Attempt)> {
    let wants = call
        .retry
        .as_ref()
        .is_some_and(|retry| retry.wants_after_answer(outcome));
    if wants {
        let host = Rc::clone(&attempt.host);
        let back = by_policy(call, attempt, outcome.unseen, now);
        if back.is_none() {
            bump(&host.stats.rq_error);
        }
        return back;
    }
    if call.attempts > 1 && outcome.class != Class::TransportError {
        attempt.cluster.stats().upstream_rq_retry_success.inc();
    }
    Some((call, attempt))
}

/// A try or the whole call took too long.
pub(super) fn timed_out<P: Protocol>(mut call: Call<P>, attempt: Attempt, now: Micros) {
    if now < call.deadline {
        attempt.cluster.stats().upstream_rq_per_try_timeout.inc();
        let wants = call
            .retry
            .as_ref()
            .is_some_and(|retry| retry.wants_after_timeout());
        if wants {
            match by_policy(call, attempt, false, now) {
                None => return,
                Some((back, _)) => call = back,
            }
        }
    } else {
        attempt.failed(&Refusal::Timeout);
    }
    give_up(call, &Refusal::Timeout, now);
}

/// Sends a call again as its policy asks, after the policy's back-off. Gives the call back when the
/// policy's or the circuit breaker's retries, or the time, are used up. A call that no application has
/// seen is no load on the servers, so the circuit breaker does not count against it.
fn by_policy<P: Protocol>(
    mut call: Call<P>,
    attempt: Attempt,
    unseen: bool,
    now: Micros,
) -> Option<(Call<P>, Attempt)> {
    let priority = call
        .route
        .as_ref()
        .map_or(Priority::Default, |routed| routed.priority);
    let Some(retry) = &mut call.retry else {
        return Some((call, attempt));
    };
    let stats = attempt.cluster.stats();
    retry.permit = None;
    if retry.left == 0 || retry.frame.is_empty() {
        retry.exhausted = true;
        stats.upstream_rq_retry_limit_exceeded.inc();
        return Some((call, attempt));
    }
    let permit = attempt.cluster.breaker(priority).try_retry();
    if permit.is_none() && !unseen {
        stats.upstream_rq_retry_overflow.inc();
        return Some((call, attempt));
    }
    retry.retries += 1;
    let back_off = retry.back_off();
    if now + micros(back_off) >= call.deadline {
        return Some((call, attempt));
    }
    retry.permit = permit;
    retry.left -= 1;
    retry.tried.push(Rc::clone(&attempt.host));
    stats.upstream_rq_retry.inc();
    stats.upstream_rq_retry_backoff_exponential.inc();
    let frame = std::mem::take(&mut retry.frame);
    drop(attempt);
    let worker = Rc::clone(&call.down.worker);
    worker.clone().spawn(async move {
        tokio::time::sleep(back_off).await;
        if !call.down.is_closed() {
            again(call, &frame, super::now(&worker));
        }
    });
    None
}
