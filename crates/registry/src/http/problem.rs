//! Errors as JSON documents: a code for programs, a message for people, and the path of the field that is wrong.

use std::fmt;

use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use base::FieldError;
use serde::Serialize;

use crate::error::Error;

/// What is answered when something is wrong.
#[derive(Debug, Serialize)]
pub(super) struct Problem {
    #[serde(skip)]
    status: StatusCode,
    code: &'static str,
    message: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    field: String,
}

impl Problem {
    fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Problem {
        Problem {
            status,
            code,
            message: message.into(),
            field: String::new(),
        }
    }

    pub(super) fn invalid(error: FieldError) -> Problem {
        Problem {
            field: error.path,
            ..Problem::new(StatusCode::BAD_REQUEST, "invalid_argument", error.message)
        }
    }

    pub(super) fn bad_request(message: &str) -> Problem {
        Problem::new(StatusCode::BAD_REQUEST, "bad_request", message)
    }

    pub(super) fn not_found(message: impl Into<String>) -> Problem {
        Problem::new(StatusCode::NOT_FOUND, "not_found", message)
    }

    pub(super) fn method_not_allowed(method: &Method, path: &str) -> Problem {
        let message = format!("{path} does not know {method}");
        Problem::new(
            StatusCode::METHOD_NOT_ALLOWED,
            "method_not_allowed",
            message,
        )
    }

    pub(super) fn too_large(limit: usize) -> Problem {
        let message = format!("a body may have {limit} bytes at most");
        Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", message)
    }

    pub(super) fn internal(error: &impl fmt::Display) -> Problem {
        Problem::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "internal",
            error.to_string(),
        )
    }

    /// What the registry refused, of a list of instances.
    pub(super) fn of(error: &Error) -> Problem {
        match error {
            Error::Invalid(error) => Problem::invalid(error.clone()),
            Error::Unauthenticated(message) => {
                Problem::new(StatusCode::UNAUTHORIZED, "unauthenticated", message)
            }
            Error::Forbidden(message) => Problem::new(StatusCode::FORBIDDEN, "forbidden", message),
            Error::NotFound(message) => Problem::not_found(message),
            Error::TooMany(message) => {
                Problem::new(StatusCode::TOO_MANY_REQUESTS, "too_many", message)
            }
            Error::Overloaded(_) => Problem::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "overloaded",
                error.to_string(),
            ),
            Error::Stopped => Problem::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "stopping",
                error.to_string(),
            ),
            Error::NotEmpty(_) => {
                Problem::new(StatusCode::CONFLICT, "not_empty", error.to_string())
            }
            Error::Unreachable(_) => Problem::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "store_unreachable",
                error.to_string(),
            ),
            Error::Store(_) => Problem::new(
                StatusCode::INTERNAL_SERVER_ERROR,
                "store_failed",
                error.to_string(),
            ),
        }
    }

    /// What the registry refused, of a request that is about one instance.
    pub(super) fn of_one(error: &Error) -> Problem {
        let mut problem = Problem::of(error);
        if let Some(field) = problem.field.strip_prefix("instances[0].") {
            problem.field = field.to_owned();
        }
        if problem.field == "ttl" {
            problem.field = "ttlSeconds".to_owned();
        }
        problem
    }
}

impl From<Error> for Problem {
    fn from(error: Error) -> Problem {
        Problem::of(&error)
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let body = serde_json::to_vec(&self).unwrap_or_default();
        let headers = [(header::CONTENT_TYPE, "application/problem+json")];
        let mut response = (self.status, headers, body).into_response();
        if self.status == StatusCode::UNAUTHORIZED {
            let scheme = HeaderValue::from_static("Bearer");
            response
                .headers_mut()
                .insert(header::WWW_AUTHENTICATE, scheme);
        }
        response
    }
}
