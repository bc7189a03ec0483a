"""Group the rows of concurrent requests into batches; run each batch as one model call.

    Batcher.submit -> RowQueue -> Batcher.take -> Batch.run -> Future[Answer]

batcher               admits requests, forms batches, distributes the scores to the requests
row_queue             the waiting rows: one FIFO queue for small requests, one for large requests
drain_rate            measures the seconds per row, from which the waiting time of a new request is predicted
leader_follower_pool  the threads: one polls for requests, the others run batches
statistics            counters and histograms of one model

The package imports neither gRPC nor ONNX Runtime: it receives `predict`, a function from bitmaps to scores.
"""
