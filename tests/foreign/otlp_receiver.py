"""A collector's front door: OTLP over HTTP, decoded by OpenTelemetry's own messages (PyPI opentelemetry-proto), a line of JSON a request.

otlp_receiver.py ADDRESS:PORT|/SOCKET FILE
"""
import http.server
import json
import pathlib
import socketserver
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent / "python"))
from google.protobuf.json_format import MessageToDict
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

where, lines = sys.argv[1], open(sys.argv[2], "a", buffering=1)


def attributes(of):
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in of}


def spans(request):
    for resource in request.resource_spans:
        for scope in resource.scope_spans:
            for span in scope.spans:
                yield {
                    "resource": attributes(resource.resource.attributes),
                    "name": span.name,
                    "trace": span.trace_id.hex(),
                    "id": span.span_id.hex(),
                    "parent": span.parent_span_id.hex(),
                    "state": span.trace_state,
                    "kind": span.kind,
                    "status": span.status.code,
                    "took_ns": span.end_time_unix_nano - span.start_time_unix_nano,
                    "attributes": attributes(span.attributes),
                }


def metrics(request):
    for resource in request.resource_metrics:
        for scope in resource.scope_metrics:
            for metric in scope.metrics:
                kind = metric.WhichOneof("data")
                for point in getattr(metric, kind).data_points:
                    value = MessageToDict(point, preserving_proto_field_name=True)
                    yield {
                        "resource": attributes(resource.resource.attributes),
                        "metric": metric.name,
                        "unit": metric.unit,
                        "kind": kind,
                        "attributes": attributes(point.attributes),
                        "value": value,
                    }


class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        kind, read = {
            "/v1/traces": (ExportTraceServiceRequest, spans),
            "/v1/metrics": (ExportMetricsServiceRequest, metrics),
        }[self.path]
        assert self.headers["Content-Type"] == "application/x-protobuf", self.headers
        for each in read(kind.FromString(body)):
            lines.write(json.dumps(each) + "\n")
        self.send_response(200)
        self.send_header("Content-Type", "application/x-protobuf")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def address_string(self):
        return "caller"

    def log_message(self, *_):
        pass


if where.startswith("/"):
    server = socketserver.ThreadingUnixStreamServer(where, Handler)
else:
    address, port = where.rsplit(":", 1)
    server = http.server.ThreadingHTTPServer((address, int(port)), Handler)
lines.write(json.dumps({"listening": where}) + "\n")
server.serve_forever()
