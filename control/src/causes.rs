//! Errors as one line of text, down to what the kernel said.

use std::error::Error;

/// The text of an error and of every cause beneath it. A cause that the text above it quotes already is not said twice.
pub fn text(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let said = error.to_string();
        if !text.ends_with(&said) {
            text = format!("{text}: {said}");
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::ClientError;
    use crate::daemon::DaemonError;
    use std::io;

    #[test]
    fn a_cause_is_said_once_whether_or_not_the_error_quotes_it() {
        let source = || io::Error::from_raw_os_error(111);
        let silent = ClientError::Closed { path: "/run/weft/t.sock".into(), source: source() };
        let expected = "weftd at /run/weft/t.sock closed the connection: Connection refused (os error 111)";
        assert_eq!(text(&silent), expected);
        let quoting = DaemonError::Process { pid: 7, source: source() };
        assert_eq!(text(&quoting), "process 7: Connection refused (os error 111)");
    }
}
