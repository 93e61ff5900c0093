"""The log of TorchServe: on stdout in the foreground, for the platform; in files of bounded size otherwise.

TorchServe's own configuration writes 1.4 kB a request to the console, which nothing rotates.
"""

from __future__ import annotations

from typing import Final

FILE_MEGABYTES: Final = 20
FILES: Final = 3
"""Kept beside the one that is written, for each of the two logs."""

_PATTERN: Final = "%d{ISO8601} [%-5p] %c - %m%n"
_CONSOLE: Final = f"""\
    <Console name="log" target="SYSTEM_OUT">
      <PatternLayout pattern="{_PATTERN}"/>
    </Console>"""


def _file(name: str, file: str) -> str:
    return f"""\
    <RollingFile name="{name}" fileName="${{env:LOG_LOCATION:-logs}}/{file}.log"
        filePattern="${{env:LOG_LOCATION:-logs}}/{file}.%i.log.gz">
      <PatternLayout pattern="{_PATTERN}"/>
      <Policies>
        <SizeBasedTriggeringPolicy size="{FILE_MEGABYTES} MB"/>
      </Policies>
      <DefaultRolloverStrategy max="{FILES}"/>
    </RollingFile>"""


def log_config(foreground: bool) -> str:
    """Makes the configuration of Log4j, as XML.

    What TorchServe tells of each request is left out, but for the access log, which only files get. What the
    handler prints is in the log.

    Args:
      foreground: everything to stdout, nothing to files.
    """
    appenders = [_CONSOLE] if foreground else [_file("log", "ts_log"), _file("access", "access_log")]
    access = "" if foreground else '<AppenderRef ref="access"/>'
    joined = "\n".join(appenders)
    return f"""\
<?xml version="1.0" encoding="UTF-8"?>
<Configuration>
  <Appenders>
{joined}
  </Appenders>
  <Loggers>
    <Logger name="ACCESS_LOG" level="{"off" if foreground else "info"}" additivity="false">{access}</Logger>
    <Logger name="MODEL_METRICS" level="off"/>
    <Logger name="TS_METRICS" level="off"/>
    <Logger name="MODEL_LOG" level="info">
      <RegexFilter regex="Backend received inference.*" onMatch="DENY" onMismatch="NEUTRAL"/>
    </Logger>
    <Logger name="org.pytorch.serve.wlm" level="warn"/>
    <Logger name="org.pytorch.serve.job" level="warn"/>
    <Logger name="io.netty" level="error"/>
    <Logger name="org.apache" level="off"/>
    <Root level="info">
      <AppenderRef ref="log"/>
    </Root>
  </Loggers>
</Configuration>
"""
