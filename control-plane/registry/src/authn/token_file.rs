//! Tokens from a file, as kube-apiserver's `--token-auth-file` reads them: `token,user,uid,"group1,group2"` a line.

use coracle_apiserver::UserInfo;

/// The tokens of a file.
///
/// # Errors
/// The first line that is none, in words.
pub fn parse(text: &str) -> Result<Vec<(String, UserInfo)>, String> {
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let mut all: Vec<(String, UserInfo)> = Vec::new();
    for (at, line) in lines {
        let wrong = |why: &str| format!("line {}: {why}", at + 1);
        let fields = fields(line).ok_or_else(|| wrong("a quotation mark is not closed"))?;
        let [token, name, uid, rest @ ..] = fields.as_slice() else {
            return Err(wrong("there must be at least a token, a user name and a uid"));
        };
        if token.is_empty() || name.is_empty() {
            return Err(wrong("the token or the user name is empty"));
        }
        if all.iter().any(|(known, _)| known == token) {
            return Err(wrong("the token is there already"));
        }
        let groups = rest.first().map(String::as_str).unwrap_or_default();
        let groups: Vec<&str> = groups.split(',').map(str::trim).filter(|g| !g.is_empty()).collect();
        all.push((token.clone(), UserInfo { uid: uid.clone(), ..UserInfo::new(name, &groups) }));
    }
    Ok(all)
}

/// The fields of a line of comma-separated values; `None` where a quotation mark is not closed.
fn fields(line: &str) -> Option<Vec<String>> {
    let (mut all, mut field, mut quoted) = (Vec::new(), String::new(), false);
    let mut rest = line.chars().peekable();
    while let Some(c) = rest.next() {
        match c {
            '"' if quoted && rest.peek() == Some(&'"') => field.extend(rest.next()),
            '"' => quoted = !quoted,
            ',' if !quoted => all.push(std::mem::take(&mut field).trim().to_owned()),
            c => field.push(c),
        }
    }
    all.push(field.trim().to_owned());
    (!quoted).then_some(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines() {
        let all = parse("abc,jane,7,\"ops,dev\"\n\ndef,joe,8\n").unwrap();
        let (token, jane) = &all[0];
        assert_eq!((token.as_str(), jane.name.as_str(), jane.uid.as_str()), ("abc", "jane", "7"));
        assert_eq!(jane.groups, ["ops", "dev", "system:authenticated"]);
        assert_eq!(all[1].1.groups, ["system:authenticated"]);
        for wrong in ["abc,jane", "abc,jane,7,\"ops", ",jane,7", "a,b,c\na,d,e"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
