"""gRPC servicers: the classifier, the Open Inference Protocol and health."""
