//! A service that asks its sidecar who a caller is: an imported function, not a connection.
use coracle_sdk::{Body, Request, Response, Result, handler, pod};

mod bindings {
    wit_bindgen::generate!({ world: "web", path: "../wit" });
}
use bindings::demo::auth::tokens::{self, Refusal, Session};

#[handler]
async fn web(request: Request) -> Result<Response> {
    let header = request.headers().get("authorization").and_then(|value| value.to_str().ok());
    let token = header.and_then(|value| value.strip_prefix("Bearer ")).unwrap_or_default();
    Ok(match tokens::who(token) {
        Ok(user) => {
            let greeting = format!("hello {} of {}", user.name, user.groups.join(" and "));
            let session = Session::new(&user);
            for action in request.uri().path().split('/').filter(|part| !part.is_empty()) {
                session.note(action);
            }
            let actions = tokens::close(session);
            answer(200, format!("{greeting}: {} in {}\n", actions.join(", "), pod::name()))
        }
        Err(Refusal::Unknown) => answer(401, "who are you?\n".into()),
        Err(Refusal::Expired(end)) => answer(403, format!("your token ended at {end}\n")),
    })
}

fn answer(status: u16, words: String) -> Response {
    let mut response = Response::new(Body::from(words));
    *response.status_mut() = status.try_into().unwrap_or_default();
    response
}
