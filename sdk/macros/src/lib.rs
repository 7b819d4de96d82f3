//! The attribute that turns a function into a component's HTTP entry point.

use proc_macro::TokenStream;
use quote::quote;
use syn::{ItemFn, parse_macro_input};

/// Makes an `async fn(Request) -> Result<Response>` the handler of every request to this pod.
///
/// An error answers 500 and is written to the pod's log.
#[proc_macro_attribute]
pub fn handler(_: TokenStream, item: TokenStream) -> TokenStream {
    let function = parse_macro_input!(item as ItemFn);
    if function.sig.asyncness.is_none() {
        return syn::Error::new_spanned(&function.sig.fn_token, "a handler is an `async fn`")
            .to_compile_error()
            .into();
    }
    let name = &function.sig.ident;
    quote! {
        #function

        struct __CoracleHandler;

        impl ::coracle_sdk::wstd::__internal::wasip2::exports::http::incoming_handler::Guest for __CoracleHandler {
            fn handle(
                request: ::coracle_sdk::wstd::__internal::wasip2::http::types::IncomingRequest,
                out: ::coracle_sdk::wstd::__internal::wasip2::http::types::ResponseOutparam,
            ) {
                ::coracle_sdk::respond(request, out, #name)
            }
        }

        ::coracle_sdk::wstd::__internal::wasip2::http::proxy::export!(
            __CoracleHandler with_types_in ::coracle_sdk::wstd::__internal::wasip2
        );

        // A binary needs a `main`; the runtime calls the handler and never this.
        fn main() {
            eprintln!("this component is an HTTP handler: deploy it, do not run it");
            ::std::process::exit(2);
        }
    }
    .into()
}
