package v1alpha1_test

import (
	"fmt"
	"strings"
)

const digest = "@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

// endpointYAML is an endpoint of that name with that spec, indented by nothing.
func endpointYAML(name, spec string) string {
	return "apiVersion: sluice.dev/v1alpha1\nkind: ModelEndpoint\nmetadata: {name: " + name + ", namespace: default}\nspec:\n" +
		"  " + strings.ReplaceAll(strings.TrimSpace(spec), "\n", "\n  ") + "\n"
}

// one is a spec with one version and more of its fields; two has a second version b.
func one(fields string) string { return "versions:\n- {name: a, image: r/a" + digest + fields + "}" }

func two(a, b string) string { return one(a) + "\n- {name: b, image: r/b" + digest + b + "}" }

func strategy(fields string) string { return one("") + "\nstrategy: {" + fields + "}" }

func versions(n int) string {
	out := "versions:"
	for i := range n {
		out += fmt.Sprintf("\n- {name: v%d, image: r/v%d%s}", i, i, digest)
	}
	return out
}

// refused are objects that must not be stored. Each says what of the answer a person reads: the field,
// and words of rule and way out.
var refused = []struct{ name, object, field, words string }{
	{"no version", "versions: []", "spec.versions", "an endpoint needs at least one version; deploy one with `sluice deploy` [invalid]"},
	{"versions left out", "auth: {mode: key}", "spec.versions", "Required value"},
	{"model data collection", one(", dataCollection: {enabled: true}"), "spec.versions[0].dataCollection.enabled", "not built yet, so it is refused rather than ignored; leave it out [not_supported_yet]"},
	{"Application Insights", one("") + "\ntelemetry: {applicationInsights: {enabled: true}}", "spec.telemetry.applicationInsights.enabled", "not built yet, so it is refused rather than ignored; leave it out, the router's own metrics are on [not_supported_yet]"},
	{"seventh version", versions(7), "spec.versions", "an endpoint has at most 6 versions; delete one with `sluice delete ENDPOINT VERSION` [too_many_versions]"},
	{"hundred versions", versions(100), "spec.versions", "must have at most 16 items"},
	{"two controls", two(", type: control", ", type: control"), "spec.versions", "more than one version is the control; give the role with `sluice update ENDPOINT VERSION --control`, which moves it [two_controls]"},
	{"two standbys", two(", type: standby", ", type: standby"), "spec.versions", "more than one version is the standby; leave the type of one of them out [two_standbys]"},
	{"two defaults", two(", isDefault: true", ", isDefault: true"), "spec.versions", "more than one version is the default; make one default"},
	{"60 and 50", two(", trafficPercentile: 60", ", trafficPercentile: 50"), "spec.versions", "the claims add up to more than 100 per cent; lower a claim first; what no version claims goes to the default [percent_sum]"},
	{"99.999 and 0.002", two(", trafficPercentile: 99.999", ", trafficPercentile: 0.002"), "spec.versions", "[percent_sum]"},
	{"-1", one(", trafficPercentile: -1"), "spec.versions[0].trafficPercentile", "write a number from 0 to 100 with at most three decimals, such as 12.5 [percent_invalid]"},
	{"100.001", one(", trafficPercentile: 100.001"), "spec.versions[0].trafficPercentile", "[percent_invalid]"},
	{"four decimals", one(", trafficPercentile: 33.3333"), "spec.versions[0].trafficPercentile", "[percent_invalid]"},
	{"1e300", one(", trafficPercentile: 1e300"), "spec.versions[0].trafficPercentile", "[percent_invalid]"},
	{"percentile in quotes", one(`, trafficPercentile: "10"`), "spec.versions[0].trafficPercentile", "must be of type number"},
	{"planned four decimals", one(", plannedPercentile: 0.0001"), "spec.versions[0].plannedPercentile", "[percent_invalid]"},
	{"name of a version", "versions: [{name: Bad_Name, image: r/a" + digest + "}]", "spec.versions[0].name", "not a name for a version; use 1 to 32 lower-case letters, digits and hyphens, beginning with a letter and not ending with a hyphen [invalid]"},
	{"long name of a version", "versions: [{name: " + strings.Repeat("a", 33) + ", image: r/a" + digest + "}]", "spec.versions[0].name", "use 1 to 32"},
	{"name with a line's end", "versions: [{name: \"a\\n\", image: r/a" + digest + "}]", "spec.versions[0].name", "use 1 to 32"},
	{"no name", "versions: [{image: r/a" + digest + "}]", "spec.versions[0].name", "Required value"},
	{"same name twice", versions(1) + "\n- {name: v0, image: r/b" + digest + "}", "spec.versions[1]", "Duplicate value"},
	{"type", one(", type: canary"), "spec.versions[0].type", `supported values: "control", "treatment", "standby"`},
	{"image by tag", "versions: [{name: a, image: 'fraud:latest'}]", "spec.versions[0].image", "not an image by digest; name the image by digest: NAME@sha256:HEX [invalid]"},
	{"no image", "versions: [{name: a}]", "spec.versions[0].image", "Required value"},
	{"token", one("") + "\nauth: {mode: token}", "spec.auth.mode", "token authentication is not built yet, so it is refused rather than ignored; use mode key (the default) [not_supported_yet]"},
	{"auth mode", one("") + "\nauth: {mode: open}", "spec.auth.mode", `supported values: "key", "token", "none"`},
	{"min over max", one(", autoscale: {minReplicas: 5, maxReplicas: 2}"), "spec.versions[0].autoscale.minReplicas", "minReplicas is more than maxReplicas; raise maxReplicas or lower minReplicas [invalid]"},
	{"max of nought", one(", autoscale: {maxReplicas: 0}"), "spec.versions[0].autoscale.maxReplicas", "greater than or equal to 1"},
	{"too many replicas", one(", replicas: 1001"), "spec.versions[0].replicas", "less than or equal to 1000"},
	{"negative replicas", one(", replicas: -1"), "spec.versions[0].replicas", "greater than or equal to 0"},
	{"fixed and autoscale", one(", replicas: 2, autoscale: {}"), "spec.versions[0].replicas", "a fixed number of replicas excludes autoscale; leave out replicas or autoscale [invalid]"},
	{"autoscale off without replicas", one(", autoscale: {enabled: false}"), "spec.versions[0].autoscale.enabled", "set replicas, or leave enabled out [invalid]"},
	{"utilisation", one(", autoscale: {targetUtilization: 101}"), "spec.versions[0].autoscale.targetUtilization", "less than or equal to 100"},
	{"slots", one(", concurrency: {maxConcurrentRequests: 513}"), "spec.versions[0].concurrency.maxConcurrentRequests", "less than or equal to 512"},
	{"timeout of two days", one(", scoringTimeoutMs: 172800000"), "spec.versions[0].scoringTimeoutMs", "less than or equal to 86400000"},
	{"probe", one(", livenessProbe: {periodSeconds: -1}"), "spec.versions[0].livenessProbe.periodSeconds", "greater than or equal to 1"},
	{"zero as the default", one(", concurrency: {maxQueueWaitMs: 0}"), "spec.versions[0].concurrency.maxQueueWaitMs", "greater than or equal to 1"},
	{"port", one(", server: {port: 65536}"), "spec.versions[0].server.port", "less than or equal to 65535"},
	{"path", one(", server: {scorePath: score}"), "spec.versions[0].server.scorePath", "begin it with / [invalid]"},
	{"number as a variable", one(", environmentVariables: {THREADS: 1}"), "spec.versions[0].environmentVariables.THREADS", "should be less than or equal to 0"},
	{"truth as a variable", one(", environmentVariables: {FAST: true}"), "<nil>", `"spec.versions[0].environmentVariables.FAST" must not validate the schema`},
	{"list as a variable", one(", environmentVariables: {LIST: [a]}"), "spec.versions[0].environmentVariables.LIST", "must have at most 0 items"},
	{"half a reference", one(", environmentVariables: {TOKEN: {secret: s}}"), "spec.versions[0].environmentVariables.TOKEN.key", "Required value"},
	{"reference with more", one(", environmentVariables: {TOKEN: {secret: s, key: k, optional: true}}"), "spec.versions[0].environmentVariables.TOKEN", "must have at most 2 items"},
	{"steps down", strategy("steps: [{percent: 5}, {percent: 1}]"), "spec.strategy.steps", "order the steps upwards [invalid]"},
	{"same step twice", strategy("steps: [{percent: 5}, {percent: 5}]"), "spec.strategy.steps", "order the steps upwards [invalid]"},
	{"step of nought", strategy("steps: [{percent: 0}]"), "spec.strategy.steps[0].percent", "use a number above 0 and up to 100 [invalid]"},
	{"step's requests", strategy("steps: [{percent: 1, minRequests: -1}]"), "spec.strategy.steps[0].minRequests", "greater than or equal to 0"},
	{"step's duration", strategy("steps: [{percent: 1, minDuration: -5m}]"), "spec.strategy.steps[0].minDuration", "use 0s or more"},
	{"51 steps", strategy("steps: [" + strings.Repeat("{percent: 1}, ", 51) + "]"), "spec.strategy.steps", "must have at most 50 items"},
	{"gate", strategy("gate: manual"), "spec.strategy.gate", `supported values: "verdict", "none"`},
	{"alpha", strategy("alpha: 0.6"), "spec.strategy.alpha", "use a number from 1e-09 to 0.5 [invalid]"},
	{"beta", strategy("beta: -0.1"), "spec.strategy.beta", "use a number from 1e-09 to 0.5 [invalid]"},
	{"r0", strategy("r0: 0.5"), "spec.strategy.r0", "use a number from 1 to 1000 [invalid]"},
	{"r1 under r0", strategy("r0: 3"), "spec.strategy.r1", "use a ratio above r0; the defaults are r0 1 and r1 2 [invalid]"},
	{"bad rate of nought", strategy("maxBadPercent: 0"), "spec.strategy.maxBadPercent", "use per cent above 0 and up to 100"},
	{"deadline of nought", strategy("deadline: 0s"), "spec.strategy.deadline", "use a duration such as '24h' [invalid]"},
	{"deadline in days", strategy("deadline: 1d"), "spec.strategy.deadline", "use a duration such as '24h' [invalid]"},
	{"deadline as a number", strategy("deadline: 24"), "spec.strategy.deadline", "must be of type string"},
	{"at the deadline", strategy("onDeadline: promote"), "spec.strategy.onDeadline", `supported values: "hold", "rollback"`},
	{"retain for less than nothing", strategy("retainFor: -1h"), "spec.strategy.retainFor", "or '0s' for no standby [invalid]"},
	{"time that Go does not read", one(`, createdAt: "2026-11-23T10:00:00+0100"`), "spec.versions[0].createdAt", "should match"},
	{"number beyond all numbers", one(", source: {repositoryId: 1e30}"), "spec.versions[0].source.repositoryId", "less than or equal to"},
	{"template as text", one(", template: x"), "spec.versions[0].template", "must be of type object"},
	{"same repository twice", one("") + "\nrepositories: [1, 1]", "spec.repositories[1]", "Duplicate value"},
	{"21 changes", one("") + "\nchanges: [" + strings.Repeat("{id: x, actor: x, action: x, reason: x, at: '2026-11-23T10:00:00Z', digest: x}, ", 21) + "]", "spec.changes", "must have at most 20 items"},
}

// accepted are objects that must be stored.
var accepted = []struct{ name, object string }{
	{"one version", one("")},
	{"six versions", versions(6)},
	{"claims of 0.1, 0.2 and 99.7", versions(3) + "\n- {name: a, image: r/a" + digest + ", trafficPercentile: 0.1}\n- {name: b, image: r/b" + digest + ", trafficPercentile: 0.2}\n- {name: c, image: r/c" + digest + ", trafficPercentile: 99.7}"},
	{"a thousandth", one(", trafficPercentile: 0.001")},
	{"thirds", two(", trafficPercentile: 33.333", ", trafficPercentile: 66.667")},
	{"a version in full", one(`, type: control, isDefault: true, createdAt: "2026-11-23T10:00:00.123456789+01:00", trafficPercentile: 20, plannedPercentile: 12.5,
  source: {repositoryId: 123456789, pullRequest: 41, commit: 1f2e3d4, runId: 9876543210}, description: text, tags: {a: b}, properties: {c: d},
  resources: {cpu: "1", memory: 1Gi, cpuLimit: "2", memoryLimit: 2Gi, gpu: 1, gpuResource: nvidia.com/gpu, extended: {vendor.example/fpga: 2}},
  autoscale: {enabled: true, minReplicas: 1, maxReplicas: 10, targetUtilization: 70, refreshPeriodSeconds: 1},
  concurrency: {maxConcurrentRequests: 1, maxQueueWaitMs: 500}, scoringTimeoutMs: 60000,
  livenessProbe: {initialDelaySeconds: 310, periodSeconds: 10, timeoutSeconds: 2, successThreshold: 1, failureThreshold: 3},
  server: {command: [tritonserver], port: 8000, scorePath: /v2, healthPath: /ready},
  environmentVariables: {THREADS: "1", EMPTY: "", TOKEN: {secret: s, key: k}}, dataCollection: {enabled: false},
  template: {spec: {nodeSelector: {gpu: "true"}}}`)},
	{"fixed replicas", one(", replicas: 0")},
	{"fixed replicas with autoscale off", one(", replicas: 3, autoscale: {enabled: false, minReplicas: 1}")},
	{"min over the default max", one(", autoscale: {minReplicas: 50}")},
	{"a strategy in full", strategy("steps: [{percent: 1, minRequests: 200}, {percent: 10}, {percent: 50, minDuration: 10m}], gate: verdict, alpha: 0.01, beta: 0.05, r0: 1.0, r1: 2.0, maxBadPercent: 1, deadline: 24h, onDeadline: hold, retainFor: 1h30m0.5s")},
	{"an empty strategy", strategy("")},
	{"no standby", strategy("retainFor: 0s, gate: none, deadline: 168h")},
	{"marks", one("") + "\nhold: {reason: freeze, actor: ann}\nlock: {}\nauth: {mode: none}\nrepositories: [1, 2]\ntelemetry: {applicationInsights: {enabled: false}}"},
}
