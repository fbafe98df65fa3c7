/* What the writer and the reader of trace files agree on: who has which pid, and what kernels and copies are called. */
#pragma once

/* GPUs are processes 0..; the launcher threads and the nodes' CPU side are processes of their own. Threads are numbered from 1 in the order of enum
 * gpu_stream and enum node_stream; a launcher process has thread 1 for the launches and 2 for the steps. */
enum { KINETO_LAUNCHER_PID = 1000000, KINETO_NODE_PID = 2000000, KINETO_MOST_GPUS = 1000000 };
enum { KINETO_LAUNCH_TID = 1, KINETO_STEP_TID = 2 };

/* Correlations are stage ids from here: Holistic Trace Analysis keeps row numbers in the type that just holds the correlations, so that these may not
 * be small. */
enum { KINETO_FIRST_CORRELATION = 1 << 20 };

#define KINETO_STEP_NAME "ProfilerStep#"
#define KINETO_UPLOAD_NAME "Memcpy HtoD (Pinned -> Device)"
#define KINETO_DOWNLOAD_NAME "Memcpy DtoH (Device -> Pinned)"

/* No run lasts eleven days; the limit keeps every sum and difference of times far from overflow. A foreign file's clock may count from 1970, and its
 * base is added. */
#define KINETO_MOST_NS INT64_C(1000000000000000)
#define KINETO_MOST_FOREIGN_NS (INT64_MAX / 4)
