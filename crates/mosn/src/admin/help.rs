//! `/help`, and what a path that does not exist gets.

use axum::http::StatusCode;

use super::Reply;

/// Every path with what it is for, and its parameters.
const COMMANDS: &str = "admin commands are:
  /: Admin home page
  /certs: print certs on machine
  /clusters: upstream cluster status
      filter: Regular expression for filtering clusters by name
      format: Format to use; One of (text, json)
  /config_dump: dump current configs
      resource: The resource to dump
      name_regex: Dump only the currently loaded configurations whose names match the specified regex. Can be used with the resource query parameter.
      include_eds: Dump currently loaded configuration including EDS. See the response definition for more information
  /drain_listeners (POST): drain listeners
      graceful: When draining listeners, enter a graceful drain period prior to closing listeners
      skip_exit: When draining listeners, drain the connections but never stop the listeners
      inboundonly: Drains all inbound listeners. traffic_direction field in envoy_v3_api_msg_config.listener.v3.Listener is used to determine whether a listener is inbound or outbound.
  /healthcheck/fail (POST): cause the server to fail health checks
  /healthcheck/ok (POST): cause the server to pass health checks
  /help: print out list of admin commands
  /hot_restart_version: print the hot restart compatibility version
  /init_dump: dump what is still warming
  /listeners: print listener info
      format: File format to use; One of (text, json)
  /logging (POST): query/change logging levels
      paths: Change multiple logging levels by setting to <logger_name1>:<desired_level1>,<logger_name2>:<desired_level2>
      level: desired logging level, this will change all loggers's level; One of (, trace, debug, info, warning, error, critical, off)
  /memory: print current allocation/heap usage
  /quitquitquit (POST): exit the server
  /ready: print server state, return 200 if LIVE, otherwise return 503
  /reopen_logs (POST): reopen access logs
  /reset_counters (POST): reset all counters to zero
  /runtime: print runtime values
  /server_info: print server version/status information
  /stats: print server stats
      usedonly: Only include stats that have been written by system since restart
      filter: Regular expression for filtering stats
      invert_filter: Invert the filter regex
      format: Format to use; One of (text, json, prometheus)
      type: Stat types to include.; One of (All, Counters, Histograms, Gauges, TextReadouts)
      histogram_buckets: Histogram bucket display mode; One of (cumulative, disjoint, summary)
  /stats/prometheus: print server stats in prometheus format
      usedonly: Only include stats that have been written by system since restart
      text_readouts: Render text_readouts as new gauges with value 0 (increases Prometheus data size)
      filter: Regular expression for filtering stats
      invert_filter: Invert the filter regex
";

pub(super) fn help() -> Reply {
    Reply::text(COMMANDS)
}

pub(super) fn not_found() -> Reply {
    Reply::error(StatusCode::NOT_FOUND, format!("invalid path. {COMMANDS}"))
}
