//! A client of the HTTP/JSON interface.
