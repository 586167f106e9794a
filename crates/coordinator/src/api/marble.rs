//! The marble door: gRPC `/rpc.Marble/Activate`, and of our own the revocation lists. The messages are
//! few and fixed, so they are
//! written down here, and building needs no protoc.

use super::serve::Peer;
use crate::core::{ActivationError, ActivationRequest, Cluster};
use axum::Router;
use axum::extract::{Path, Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use http::StatusCode;
use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use tonic::server::{Grpc, UnaryService};
use tonic::{Code, Status};

/// A quote with its certificates is about 5 KiB, a signing request less than one.
const MOST_REQUEST: usize = 1 << 20;

#[derive(Clone, PartialEq, prost::Message)]
pub struct ActivationReq {
    #[prost(bytes = "vec", tag = "1")]
    pub quote: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    pub csr: Vec<u8>,
    #[prost(string, tag = "3")]
    pub marble_type: String,
    #[prost(string, tag = "4")]
    pub uuid: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct ActivationResp {
    #[prost(message, optional, tag = "1")]
    pub parameters: Option<Parameters>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Parameters {
    #[prost(map = "string, bytes", tag = "1")]
    pub files: HashMap<String, Vec<u8>>,
    #[prost(map = "string, bytes", tag = "2")]
    pub env: HashMap<String, Vec<u8>>,
    #[prost(string, repeated, tag = "3")]
    pub argv: Vec<String>,
}

pub fn router(cluster: Arc<Cluster>) -> Router {
    Router::new()
        .route("/rpc.Marble/Activate", post(activate))
        .route("/crl", get(own_lists))
        .route("/crl/{namespace}", get(lists))
        .fallback(|| async {
            Status::unimplemented("unknown method").into_http::<axum::body::Body>()
        })
        .with_state(cluster)
}

async fn own_lists(State(cluster): State<Arc<Cluster>>) -> Response {
    revocation_bundle(&cluster, "")
}

async fn lists(State(cluster): State<Arc<Cluster>>, Path(name): Path<String>) -> Response {
    revocation_bundle(&cluster, &name)
}

/// A certificate and a list, by turns, PEM.
fn revocation_bundle(cluster: &Arc<Cluster>, name: &str) -> Response {
    let unavailable = |reason: String| (StatusCode::SERVICE_UNAVAILABLE, reason).into_response();
    match cluster.get(name) {
        Ok(Some(coordinator)) => match coordinator.revocation_bundle() {
            Ok(bundle) => bundle.into_response(),
            Err(error) => unavailable(error.to_string()),
        },
        Ok(None) => StatusCode::NOT_FOUND.into_response(),
        Err(error) => unavailable(error.to_string()),
    }
}

async fn activate(State(cluster): State<Arc<Cluster>>, request: Request) -> Response {
    let peer = request
        .extensions()
        .get::<Peer>()
        .cloned()
        .unwrap_or_default();
    let codec = tonic_prost::ProstCodec::<ActivationResp, ActivationReq>::default();
    Grpc::new(codec)
        .apply_max_message_size_config(Some(MOST_REQUEST), None)
        .unary(Activate { cluster, peer }, request)
        .await
        .into_response()
}

struct Activate {
    cluster: Arc<Cluster>,
    peer: Peer,
}

impl UnaryService<ActivationReq> for Activate {
    type Response = ActivationResp;
    type Future =
        Pin<Box<dyn Future<Output = Result<tonic::Response<ActivationResp>, Status>> + Send>>;

    fn call(&mut self, request: tonic::Request<ActivationReq>) -> Self::Future {
        let cluster = self.cluster.clone();
        let peer = self.peer.clone();
        Box::pin(async move {
            let request = request.into_inner();
            let (coordinator, marble_type) = cluster
                .of_marble(&request.marble_type)
                .map_err(|error| Status::internal(error.to_string()))?;
            let result = coordinator
                .activate(ActivationRequest {
                    quote: &request.quote,
                    csr: &request.csr,
                    marble_type,
                    uuid: &request.uuid,
                    certificate: peer.certificate.as_deref().map(Vec::as_slice),
                })
                .await;
            match result {
                Ok(mut parameters) => Ok(tonic::Response::new(ActivationResp {
                    parameters: Some(Parameters {
                        files: std::mem::take(&mut parameters.files).into_iter().collect(),
                        env: std::mem::take(&mut parameters.env).into_iter().collect(),
                        argv: std::mem::take(&mut parameters.argv),
                    }),
                })),
                Err(error) => {
                    let code = match &error {
                        ActivationError::State => Code::FailedPrecondition,
                        ActivationError::Unauthenticated(_) => Code::Unauthenticated,
                        ActivationError::Denied(_) => Code::PermissionDenied,
                        ActivationError::Invalid(_) => Code::InvalidArgument,
                        ActivationError::Conflict => Code::Aborted,
                        ActivationError::Internal(_) => Code::Internal,
                    };
                    let address = peer.address.map_or_else(String::new, |a| a.to_string());
                    crate::log::event(
                        "activation refused",
                        &[
                            ("address", &address),
                            ("marble", &request.marble_type),
                            ("uuid", &request.uuid),
                            ("reason", &error),
                        ],
                    );
                    Err(Status::new(code, error.to_string()))
                }
            }
        })
    }
}
