// Classify a drawing with C++: its three best classes, then the scores of all classes for many rows.
#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "sketchbatch/v1/classifier.grpc.pb.h"

using namespace sketchbatch::v1;

static std::string Read(const char* path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

// Sends one request with a deadline of 10 s, retries included; ends the program after an error.
template <class Method, class Request, class Response>
static void Call(ClassifierService::Stub& stub, Method method, const Request& request, Response* response) {
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(10));
  const grpc::Status status = (stub.*method)(&context, request, response);
  if (status.ok()) return;
  std::fprintf(stderr, "error: status %d: %s\n", status.error_code(), status.error_message().c_str());
  std::exit(1);
}

int main() {
  const char* server = std::getenv("SKETCHBATCH_SERVER");
  grpc::ChannelArguments args;
  args.SetServiceConfigJSON(Read(EXAMPLES "/retry.json"));  // retries UNAVAILABLE and a full queue
  args.SetMaxReceiveMessageSize(64 << 20);                  // default: 4 MiB
  args.SetInt("grpc.per_rpc_retry_buffer_size", 16 << 20);  // larger requests are not retried
  args.SetInt("grpc.keepalive_time_ms", 20000);
  ClassifierService::Stub stub(
      grpc::CreateCustomChannel(server ? server : "localhost:50051", grpc::InsecureChannelCredentials(), args));

  GetModelResponse described;
  Call(stub, &ClassifierService::Stub::GetModel, GetModelRequest(), &described);
  const Model& model = described.model();

  const std::string cat = Read(EXAMPLES "/cat.bitmap");  // 784 bytes, 28 x 28, 0 = paper, 255 = ink
  ClassifyRequest request;
  request.set_bitmaps(cat);
  request.set_top_k(3);
  ClassifyResponse best;
  Call(stub, &ClassifierService::Stub::Classify, request, &best);
  for (int place = 0; place < best.score_size(); ++place)
    std::printf("%s %.3f\n", model.labels(best.class_index(place)).c_str(), best.score(place));

  const int rows = std::min<int>(4096, model.max_request_rows());
  request.clear_bitmaps();
  for (int row = 0; row < rows; ++row) request.mutable_bitmaps()->append(cat);
  request.set_top_k(0);  // the scores of all classes
  ClassifyResponse all;
  Call(stub, &ClassifierService::Stub::Classify, request, &all);
  std::vector<float> first(model.labels_size());
  std::memcpy(first.data(), all.scores().data(), first.size() * sizeof(float));  // on a little-endian machine
  const auto best_class = std::max_element(first.begin(), first.end()) - first.begin();
  std::printf("%u rows, %zu bytes of scores; the first row: %s\n", all.rows(), all.scores().size(),
              model.labels(best_class).c_str());
}
