"""gRPC's health service as its own Python package watches it: a line for each status, then how the watch has ended."""
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent / "python"))
import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

# As in client.py.
channel = grpc.insecure_channel(f"unix:{sys.argv[1]}", options=[("grpc.default_authority", "localhost")])
watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service=sys.argv[2]), timeout=60)
try:
    for answer in watch:
        print(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status), flush=True)
except grpc.RpcError as error:
    print(error.code().name, flush=True)
