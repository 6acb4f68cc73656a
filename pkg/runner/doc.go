// Package runner is the first process of a replica: the gate that admits as many
// requests at once as the replica has slots and refuses the rest, and behind it
// either the scoring server (a Python worker that imports an entry script) or any
// server that listens on a port.
//
// # Over HTTP
//
//   - GET / is the health of the replica: 200 "Healthy" once it can score, else 503
//     with an error whose code is replicas_starting, probe_failed (a custom server
//     whose health check fails) or draining. It never needs a slot. The headers
//     Sluice-State, Sluice-In-Flight and Sluice-Slots say the same for a fleet that
//     wants more; a router does not pass Sluice- headers on.
//   - GET|POST /score scores. Behind the gate stands the scoring server: other paths
//     are 404. With a custom server /score becomes its scoring path and everything
//     else but GET / passes as it is, and takes a slot too; only GET of its health
//     path does not.
//   - A refusal is 503 with "Sluice-Refused: busy" (no free slot), "starting",
//     "draining" or "stray" (Sluice-Fleet names another version), decided before the body is read: a request with
//     "Expect: 100-continue" gets its 100 only after it has a slot. While draining,
//     answers also carry "Connection: close".
//   - "Sluice-Reason" names why the replica failed a request it had accepted:
//     script_error (502: run() raised or returned what JSON cannot hold),
//     replica_failed (502: the worker died, or the custom server did not answer),
//     scoring_timeout (504).
//   - Errors have the body {"error":{"code","message","requestId"}}.
//
// A slot is released when the answer has been written but for its last piece (1 KiB of
// a script's answer, the last read of a custom server's), so that whoever reads the end
// of an answer finds the slot free. A script's slot is taken as long as run() runs,
// whether or not the client has gone.
//
// # The scoring script
//
// The contract is Azure ML's (azureml-inference-server-http): init() once, run(data)
// per request. data is the body as text (bytes where it is not UTF-8, which Azure ML
// would refuse), for a GET the query as a JSON object; request_headers, a dict, comes
// too if run() has a parameter of that name. What run() returns is written as JSON,
// so a str is quoted; None is {}; numpy scalars and arrays count as their tolist(). A
// Flask or AMLResponse object passes with its own status and headers. A function
// decorated by inference-schema gets the fields of the body. @rawhttp is refused at
// start. sys.argv, AZUREML_MODEL_DIR, AML_APP_ROOT, AZUREML_ENTRY_SCRIPT and
// AZUREML_SOURCE_DIRECTORY are set; the working directory is the project's.
//
// One Python process serves all slots, each in a thread of its own (the only slot in
// the main thread). It is replaced, after a pause that grows, when it dies or when a
// request exceeds the scoring timeout; then its other requests end with
// replica_failed. The timeout runs from the end of the request to the start of the
// answer for a script, to the end of the answer for a custom server, whose connection
// is cancelled while the server itself lives on.
//
// What the script prints goes to [Options.Output] line by line behind "[request id] ",
// "[init] " or, from threads of its own, "[-] ". Output of C libraries passes as is.
//
// # Script mode
//
// [ModeScript] runs `python ENTRYSCRIPT ARGUMENT...` literally: the script is a server
// of its own. It must listen on the port in the environment variable PORT (on
// loopback), which the gate chose, unless [Server].Port says which port it will take.
//
// # Processes
//
// Children run in process groups of their own and end with the gate, however it ends:
// see proc_linux.go. Exit codes: [ExitCode].
package runner
