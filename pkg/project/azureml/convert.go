package azureml

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"path"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/sluice-dev/sluice/pkg/project"
	"github.com/sluice-dev/sluice/rollout"
)

// File is one of Azure ML's.
type File struct {
	// Name in errors.
	Name string
	Data []byte
	// Dir is its directory, relative to the project's root and with slashes. Only an environment's paths are relative to it.
	Dir string
}

// Input are the files. Inference is needed.
type Input struct {
	Inference, Deployment, Environment *File
}

// Options say what the files do not.
type Options struct {
	// Endpoint that the project's versions join: the name of the service, which Azure ML's CLI took as -n.
	Endpoint string
	// Models that ship, which it took as -m.
	Models []project.Model
	// LeaveOut are fields, by their paths, that are left out where they would be refused.
	LeaveOut []string
	// ReadFile reads a file by its path from the project's root: docker steps and a Dockerfile. It may be nil.
	ReadFile func(path string) ([]byte, error)
}

// ParseModel reads a model as people type it, NAME[:VERSION]=PATH or NAME[:VERSION]=ADDRESS, with a path in the project or
// the address of what `sluice model push` pushed; the version is 1 unless given.
func ParseModel(text string) (m project.Model, ok bool) {
	id, where, found := strings.Cut(text, "=")
	name, version, has := strings.Cut(id, ":")
	if !has {
		version = "1"
	}
	m = project.Model{Name: name, Version: version, Path: where}
	if strings.Contains(where, "://") {
		m.Path, m.URI = "", where
	}
	return m, found && name != "" && version != "" && where != ""
}

// Change says what became of one field.
type Change struct {
	Place project.Place `json:"place"`
	// Field of the file; empty for one that it lacks, and whose default is another one here.
	Field string `json:"field,omitempty"`
	// Became is the manifest's field, or a flag of `sluice deploy`; empty if it became nothing.
	Became string `json:"became,omitempty"`
	Value  string `json:"value,omitempty"`
	// Note says why.
	Note string `json:"note,omitempty"`
}

// String is the change in one line.
func (c Change) String() string {
	if c.Field == "" && c.Became == "" {
		return c.Note
	}
	out := cmp.Or(c.Field, "(not given)")
	if c.Became == "" {
		out += " is left out"
	} else {
		out += " is now " + c.Became
		if c.Value != "" {
			out += ": " + c.Value
		}
	}
	if c.Note != "" {
		out += " (" + c.Note + ")"
	}
	return out
}

// Deploy is what the files say about the deploy and no manifest has. Empty fields are not given.
type Deploy struct {
	// ComputeType is aks, aksendpoint or local.
	ComputeType string `json:"computeType,omitempty"`
	// ComputeTarget is the name of the cluster.
	ComputeTarget string `json:"computeTarget,omitempty"`
	Namespace     string `json:"namespace,omitempty"`
	// Version is the version's name.
	Version string `json:"version,omitempty"`
	// Percent of the traffic that it begins with.
	Percent     *rollout.Percent `json:"percent,omitempty"`
	Description string           `json:"description,omitempty"`
}

// Target is Sluice's name for where the compute type is: kubernetes, local, or empty if none is given.
func (d Deploy) Target() string {
	switch d.ComputeType {
	case computeAKS, computeEndpoint:
		return "kubernetes"
	case computeLocal:
		return "local"
	}
	return ""
}

// Flags of `sluice deploy` that say the same.
func (d Deploy) Flags() []string {
	var out []string
	add := func(name, value string) {
		if value != "" {
			out = append(out, name, value)
		}
	}
	add("--target", d.Target())
	add("--context", d.ComputeTarget)
	add("--namespace", d.Namespace)
	add("--version", d.Version)
	if d.Percent != nil {
		add("--percent", d.Percent.String())
	}
	add("--description", d.Description)
	return out
}

// CondaName is the file that an inline Conda definition becomes, at the project's root.
const CondaName = "sluice-conda.yml"

// Converted is a project made from Azure ML's files.
type Converted struct {
	Manifest *project.Manifest
	// Files are the manifest as sluice.yaml and what else it names that the project lacks, by name, for the project's root.
	Files map[string][]byte
	// Changes in the order of the files' lines.
	Changes []Change
	Deploy  Deploy
	// Read are files of the project whose content went into the manifest, by path from its root.
	Read    []string
	origins map[string]project.Place
	last    project.Place
}

// Given is the manifest as an option of what reads projects. sources are the files' paths from the project's root; beside
// says that something else determined the manifest, too.
func (c *Converted) Given(sources []string, beside bool) *project.Given {
	return &project.Given{Files: c.Files, Sources: append(slices.Clone(sources), c.Read...), Beside: beside, Origin: c.Origin}
}

// Origin is the place that a field of the manifest came from, or, by a flag of Deploy.Flags such as --percent, a value of the deploy.
func (c *Converted) Origin(field string) project.Place {
	for f := field; f != ""; f = project.ParentField(f) {
		if p, ok := c.origins[f]; ok {
			return p
		}
	}
	// Of a group, the first that is in it.
	found := c.last
	for _, f := range slices.Sorted(maps.Keys(c.origins)) {
		if p := c.origins[f]; strings.HasPrefix(f, field+".") && (found == c.last || p.Line < found.Line) {
			found = p
		}
	}
	return found
}

// converter is one Convert.
type converter struct {
	Converted
	o         Options
	leave     map[string]bool
	inference *project.Document
	errs      []*project.Error
	docs      []*project.Document
	// source is the source directory, from the project's root; "." is the root.
	source string
}

// Convert makes a project of Azure ML's files. The error joins one *project.Error per mistake, at most 20 of them, with its
// file and line. What it returns is a manifest that project.Parse accepts.
func Convert(in Input, o Options) (*Converted, error) {
	c := &converter{o: o, leave: map[string]bool{}, source: "."}
	c.Manifest = &project.Manifest{APIVersion: rollout.APIVersion, Kind: project.Kind, Endpoint: o.Endpoint, Models: slices.Clone(o.Models)}
	c.Files, c.origins = map[string][]byte{}, map[string]project.Place{"endpoint": {File: "--endpoint"}, "models": {File: "--model"}}
	if err := c.leaveOut(o.LeaveOut); err != nil {
		return nil, err
	}
	if in.Inference == nil {
		return nil, &project.Error{File: string(Inference), Refusal: refuse(rollout.ReasonInvalid, "",
			"name it with -ic FILE; a model without a script of its own is served by a server (scoring.command in sluice.yaml)", "is needed: it names the entry script")}
	}
	c.last = project.Place{File: in.Inference.Name}
	inf := c.inferenceConfig(in.Inference)
	c.environments(in, inf)
	if in.Deployment != nil {
		c.deploymentConfig(in.Deployment)
	}
	for _, d := range c.docs {
		c.errs = append(c.errs, d.Errors()...)
	}
	if len(c.errs) > 0 {
		return nil, project.JoinErrors(c.errs)
	}
	if o.Endpoint == "" {
		return nil, &project.Error{File: in.Inference.Name, Refusal: refuse(rollout.ReasonInvalid, "endpoint",
			"give --endpoint NAME, which was -n in Azure ML's command line", "the files do not name the endpoint")}
	}
	if err := c.Manifest.Validate(); err != nil {
		var errs []*project.Error
		for _, e := range project.Errors(err) {
			p := c.Origin(e.Refusal.Field)
			errs = append(errs, &project.Error{File: p.File, Line: p.Line, Column: p.Column, Refusal: e.Refusal})
		}
		return nil, project.JoinErrors(errs)
	}
	text, err := Marshal(c.Manifest)
	if err != nil {
		return nil, err
	}
	c.Files[project.ManifestName] = text
	order := map[string]int{}
	for i, f := range []*File{in.Inference, in.Environment, in.Deployment} {
		if f != nil {
			order[f.Name] = i
		}
	}
	slices.SortStableFunc(c.Changes, func(a, b Change) int {
		return cmp.Or(order[a.Place.File]-order[b.Place.File], a.Place.Line-b.Place.Line, a.Place.Column-b.Place.Column)
	})
	return &c.Converted, nil
}

func refuse(reason rollout.Reason, field, hint, format string, args ...any) *rollout.Error {
	return &rollout.Error{Reason: reason, Field: field, Message: fmt.Sprintf(format, args...), Hint: hint}
}

// leaveOut checks the fields that are to be left out.
func (c *converter) leaveOut(fields []string) error {
	for _, name := range fields {
		path := strings.TrimPrefix(name, "environment.")
		if !slices.ContainsFunc(Fields(), func(f Field) bool { return f.Path == path && f.Reason != "" }) {
			return refuse(rollout.ReasonInvalid, "--leave-out", "name a field that is refused, such as appInsightsEnabled", "%q is no field that would be refused", name)
		}
		c.leave[path] = true
	}
	return nil
}

// open decodes a file.
func (c *converter) open(f *File, kind Kind, into any, begin string) *project.Document {
	const ours = "remove it; keys of a sluice.yaml are none of Azure ML's files"
	hints := map[string]string{"enableAppInsights": "write it as appInsightsEnabled; Azure ML ignored this", "apiVersion": ours, "kind": ours}
	if kind == Deployment {
		hints["aadAuthEnabled"] = "write it as tokenAuthEnabled; this is its name in the REST API, and Azure ML ignored it in files"
	}
	for _, row := range Fields() {
		if row.SDK != "" && row.File == kind {
			hints[row.SDK] = "write it as " + row.Path + "; this is its name in the Python SDK, and Azure ML ignored it in files"
		}
	}
	d := project.Decode(f.Name, normalJSON(f.Data), into, hints, begin)
	if line := comment(f.Data); line > 0 && len(d.Errors()) > 0 {
		// What a reader of YAML makes of it leads nobody to the comment.
		c.errs = append(c.errs, &project.Error{File: f.Name, Line: line, Refusal: refuse(rollout.ReasonInvalid, "", "remove it; in YAML, # begins one", "JSON has no comments, but a comment begins in this line")})
		return project.Decode(f.Name, []byte("{}"), reflect.New(reflect.TypeOf(into).Elem()).Interface(), nil, begin)
	}
	c.docs = append(c.docs, d)
	return d
}

// rows goes through the table for one document: what is refused, and what becomes nothing. prefix stands before
// the fields of an environment within another file.
func (c *converter) rows(d *project.Document, kind Kind, prefix string, value any, except func(f Field, v any) (note string, ok bool)) {
	for _, row := range Fields() {
		full := prefix + row.Path
		if row.File != kind || !d.Has(full) {
			continue
		}
		v := lookup(reflect.ValueOf(value), row.Path)
		if row.Reason != "" && c.leave[row.Path] {
			c.dropped(d, full, "as was asked for")
			continue
		}
		if t := c.Deploy.ComputeType; kind == Deployment && t != "" && row.Types != nil && !slices.Contains(row.Types, t) {
			d.Refuse(refuse(rollout.ReasonInvalid, full, "remove it, or correct computeType", "is for computeType %s, and Azure ML ignored it for %s", strings.Join(row.Types, " and "), t))
			continue
		}
		note, harmless := cmp.Or(row.Note, "no effect"), row.Reason == "" || empty(v) || slices.ContainsFunc(row.Same, func(s any) bool { return reflect.DeepEqual(s, v) })
		if empty(v) {
			note = "it is empty"
		}
		if !harmless && except != nil {
			note, harmless = except(row, v)
		}
		switch {
		case !harmless:
			d.Refuse(&rollout.Error{Reason: row.Reason, Field: full, Message: row.Why, Hint: row.Way})
		case row.To == "":
			c.dropped(d, full, note)
		}
	}
}

// lookup is the value at a path of keys; what is behind pointers comes without them.
func lookup(v reflect.Value, path string) any {
	for _, key := range strings.Split(path, ".") {
		for v.Kind() == reflect.Pointer {
			v = v.Elem()
		}
		at := slices.IndexFunc(reflect.VisibleFields(v.Type()), func(f reflect.StructField) bool { return f.Tag.Get("json") == key })
		v = v.FieldByIndex([]int{at})
	}
	for v.Kind() == reflect.Pointer && !v.IsNil() {
		v = v.Elem()
	}
	return v.Interface()
}

// empty tells whether a value says nothing: no text, or nothing in a list.
func empty(v any) bool {
	r := reflect.ValueOf(v)
	switch r.Kind() {
	case reflect.String, reflect.Slice, reflect.Map:
		return r.Len() == 0
	case reflect.Invalid:
		return true
	}
	return false
}

func (c *converter) dropped(d *project.Document, field, note string) {
	c.Changes = append(c.Changes, Change{Place: d.Place(field), Field: field, Note: note})
}

// became notes that a field is one of the manifest's now, or a flag.
func (c *converter) became(d *project.Document, field, to, value, note string) {
	p := d.Place(field)
	c.origins[to] = p
	c.Changes = append(c.Changes, Change{Place: p, Field: field, Became: to, Value: value, Note: note})
}

// added notes a default that is written out.
func (c *converter) added(d *project.Document, to, value, note string) {
	p := d.Place("")
	p.Line, p.Column = 0, 0
	c.origins[to] = p
	c.Changes = append(c.Changes, Change{Place: p, Became: to, Value: value, Note: note})
}

var namespacePattern = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$`)

// deploymentConfig reads deploymentconfig.json.
func (c *converter) deploymentConfig(f *File) {
	var dc deployment
	d := c.open(f, Deployment, &dc, `begin it with {"computeType": "aks"}`)
	c.computeType(d, dc.ComputeType)
	c.rows(d, Deployment, "", &dc, nil)
	bad := func(field, hint, format string, args ...any) {
		d.Refuse(refuse(rollout.ReasonInvalid, field, hint, format, args...))
	}
	if is(dc.AuthEnabled) && is(dc.TokenAuthEnabled) && !c.leave["tokenAuthEnabled"] {
		bad("tokenAuthEnabled", "keep one of them", "keys (authEnabled) and tokens exclude each other")
	}
	if d.Has("keys.secondaryKey") && !d.Has("keys.primaryKey") && !c.leave["keys.secondaryKey"] {
		bad("keys.secondaryKey", "remove it", "a secondary key without a primary one was never sent by Azure ML")
	}
	c.scale(d, &dc)
	c.resources(d, &dc)
	v := &c.Manifest.Version
	for _, n := range []struct {
		field, to string
		from      *int
		set       func(int)
	}{
		{"scoringTimeoutMs", "version.scoringTimeoutMs", dc.ScoringTimeoutMs, func(n int) { v.ScoringTimeoutMs = n }},
		{"maxConcurrentRequestsPerContainer", "version.concurrency.maxConcurrentRequests", dc.MaxConcurrentRequestsPerContainer, func(n int) { at(&v.Concurrency).MaxConcurrentRequests = n }},
		{"maxQueueWaitMs", "version.concurrency.maxQueueWaitMs", dc.MaxQueueWaitMs, func(n int) { at(&v.Concurrency).MaxQueueWaitMs = n }},
		{"livenessProbeRequirements.initialDelaySeconds", "version.livenessProbe.initialDelaySeconds", dc.LivenessProbeRequirements.InitialDelaySeconds, func(n int) { at(&v.LivenessProbe).InitialDelaySeconds = n }},
		{"livenessProbeRequirements.periodSeconds", "version.livenessProbe.periodSeconds", dc.LivenessProbeRequirements.PeriodSeconds, func(n int) { at(&v.LivenessProbe).PeriodSeconds = n }},
		{"livenessProbeRequirements.timeoutSeconds", "version.livenessProbe.timeoutSeconds", dc.LivenessProbeRequirements.TimeoutSeconds, func(n int) { at(&v.LivenessProbe).TimeoutSeconds = n }},
		{"livenessProbeRequirements.successThreshold", "version.livenessProbe.successThreshold", dc.LivenessProbeRequirements.SuccessThreshold, func(n int) { at(&v.LivenessProbe).SuccessThreshold = n }},
		{"livenessProbeRequirements.failureThreshold", "version.livenessProbe.failureThreshold", dc.LivenessProbeRequirements.FailureThreshold, func(n int) { at(&v.LivenessProbe).FailureThreshold = n }},
	} {
		if c.positive(d, n.field, n.from) {
			n.set(*n.from)
			c.became(d, n.field, n.to, strconv.Itoa(*n.from), "")
		}
	}
	if n := dc.LivenessProbeRequirements.SuccessThreshold; n != nil && *n > 1 {
		bad("livenessProbeRequirements.successThreshold", "write 1, or leave it out for the default, which is the same", "%d is not 1, and Kubernetes allows a liveness probe no other", *n)
	}
	if dc.Namespace != "" {
		if !namespacePattern.MatchString(dc.Namespace) {
			bad("namespace", "use at most 63 lower-case letters, digits and hyphens, and no hyphen at its beginning or end", "%q is not the name of a namespace", dc.Namespace)
		}
		c.Deploy.Namespace = dc.Namespace
		c.became(d, "namespace", "--namespace", dc.Namespace, "")
	}
	if dc.ComputeTargetName != "" {
		c.Deploy.ComputeTarget = dc.ComputeTargetName
		c.became(d, "computeTargetName", "--context", dc.ComputeTargetName, "the kubeconfig must have a context of that name")
	}
	if dc.VersionName != "" {
		if err := rollout.ValidateName("versionName", "a version", dc.VersionName); err != nil {
			for _, e := range rollout.AsErrors(err) {
				d.Refuse(e)
			}
		}
		c.Deploy.Version = dc.VersionName
		c.became(d, "versionName", "--version", dc.VersionName, "versions never change, so the next one needs another name; without one it is named after the commit")
	}
	if p := dc.TrafficPercentile; p != nil {
		percent, err := rollout.ValidatePercent("trafficPercentile", strconv.FormatFloat(*p, 'f', -1, 64))
		if err != nil {
			for _, e := range rollout.AsErrors(err) {
				d.Refuse(e)
			}
		}
		c.Deploy.Percent = &percent
		c.became(d, "trafficPercentile", "--percent", percent.String(), "")
	}
}

func is(b *bool) bool { return b != nil && *b }

// at is what *p points to, made if it is not there.
func at[T any](p **T) *T {
	if *p == nil {
		*p = new(T)
	}
	return *p
}

// positive tells whether a number is given and above 0, and refuses others, as Azure ML's SDK did.
func (c *converter) positive(d *project.Document, field string, n *int) bool {
	if n == nil {
		return false
	}
	if *n <= 0 {
		d.Refuse(refuse(rollout.ReasonInvalid, field, "use 1 or more, or leave it out for the default", "%d is not above 0", *n))
		return false
	}
	return true
}

func (c *converter) computeType(d *project.Document, is string) {
	const hint = "use aks, aksendpoint or local"
	switch t := strings.ToLower(is); t {
	case computeAKS, computeEndpoint, computeLocal:
		c.Deploy.ComputeType = t
		c.became(d, "computeType", "--target", c.Deploy.Target(), "")
	case "":
		if !d.Read() {
			return
		}
		d.Refuse(refuse(rollout.ReasonInvalid, "computeType", `write "computeType": "aks"`, "is missing"))
	case computeACI:
		d.Refuse(refuse(rollout.ReasonInvalid, "computeType", "write aks for Kubernetes, or local for this machine",
			"Azure Container Instances are no target: Sluice deploys to Kubernetes or to one machine"))
	default:
		d.Refuse(refuse(rollout.ReasonInvalid, "computeType", hint, "%q is not known", is))
	}
}

// scale reads autoScaler and numReplicas by the rules of Azure ML's SDK.
func (c *converter) scale(d *project.Document, dc *deployment) {
	v, as := &c.Manifest.Version, dc.AutoScaler
	bad := func(field, hint, format string, args ...any) {
		d.Refuse(refuse(rollout.ReasonInvalid, field, hint, format, args...))
	}
	if c.positive(d, "numReplicas", dc.NumReplicas) {
		v.Replicas = dc.NumReplicas
		c.became(d, "numReplicas", "version.replicas", strconv.Itoa(*dc.NumReplicas), "")
		if is(as.AutoscaleEnabled) {
			bad("numReplicas", "remove it, or write \"autoscaleEnabled\": false", "a fixed number of replicas excludes the autoscaler, which autoScaler.autoscaleEnabled turns on")
		}
	}
	const enabled = "autoScaler.autoscaleEnabled"
	switch {
	case as.AutoscaleEnabled == nil:
	case *as.AutoscaleEnabled:
		at(&v.Autoscale).Enabled = as.AutoscaleEnabled
		c.became(d, enabled, "version.autoscale.enabled", "true", "")
	case dc.NumReplicas == nil && !d.Has("numReplicas"):
		bad(enabled, "give numReplicas, or leave autoScaler out", "the autoscaler is off, and no fixed number of replicas is given")
	default:
		c.dropped(d, enabled, "a fixed number of replicas says it")
	}
	for _, n := range []struct {
		key, to string
		from    *int
		set     func(*int)
	}{
		{"minReplicas", "minReplicas", as.MinReplicas, func(n *int) { at(&v.Autoscale).MinReplicas = n }},
		{"maxReplicas", "maxReplicas", as.MaxReplicas, func(n *int) { at(&v.Autoscale).MaxReplicas = n }},
		{"refreshPeriodInSeconds", "refreshPeriodSeconds", as.RefreshPeriodInSeconds, func(n *int) { at(&v.Autoscale).RefreshPeriodSeconds = *n }},
		{"targetUtilization", "targetUtilization", as.TargetUtilization, func(n *int) { at(&v.Autoscale).TargetUtilization = *n }},
	} {
		field := "autoScaler." + n.key
		if !c.positive(d, field, n.from) {
			continue
		}
		if !is(as.AutoscaleEnabled) {
			bad(field, "write \"autoscaleEnabled\": true beside it, or remove it", "is given, but the autoscaler is not turned on; Azure ML refused this, too")
			continue
		}
		n.set(n.from)
		c.became(d, field, "version.autoscale."+n.to, strconv.Itoa(*n.from), "")
	}
	if as.MinReplicas != nil && as.MaxReplicas != nil && *as.MinReplicas > *as.MaxReplicas {
		bad("autoScaler.minReplicas", "raise maxReplicas or lower minReplicas", "minReplicas %d is more than maxReplicas %d", *as.MinReplicas, *as.MaxReplicas)
	}
}

// Bounds of resources, and Azure ML's defaults.
const (
	maxCores, maxGiB         = 100_000, 1_000_000
	defaultCPU, defaultMemGB = 0.1, 0.5
)

// resources reads containerResourceRequirements and gpuCores.
func (c *converter) resources(d *project.Document, dc *deployment) {
	r, v := dc.ContainerResourceRequirements, &c.Manifest.Version
	const group = "containerResourceRequirements."
	for _, n := range []struct {
		key, to string
		from    *float64
		most    float64
		write   func(float64) string
		set     func(string)
	}{
		{"cpu", "cpu", r.CPU, maxCores, cores, func(s string) { at(&v.Resources).CPU = s }},
		{"memoryInGB", "memory", r.MemoryInGB, maxGiB, gibibytes, func(s string) { at(&v.Resources).Memory = s }},
		{"cpuLimit", "cpuLimit", r.CPULimit, maxCores, cores, func(s string) { at(&v.Resources).CPULimit = s }},
		{"memoryInGBLimit", "memoryLimit", r.MemoryInGBLimit, maxGiB, gibibytes, func(s string) { at(&v.Resources).MemoryLimit = s }},
	} {
		field := group + n.key
		switch {
		case n.from == nil:
			continue
		case *n.from <= 0:
			d.Refuse(refuse(rollout.ReasonInvalid, field, "use a number above 0, or leave it out for the default", "%g is not above 0", *n.from))
			continue
		case *n.from > n.most:
			d.Refuse(refuse(rollout.ReasonInvalid, field, fmt.Sprintf("use %g or less", n.most), "%g is more than any machine has", *n.from))
			continue
		}
		quantity := n.write(*n.from)
		n.set(quantity)
		c.became(d, field, "version.resources."+n.to, quantity, "")
	}
	for _, n := range []struct {
		key, limit string
		is, most   *float64
		def        float64
		to, value  string
		set        func(string)
	}{
		{"cpu", "cpuLimit", r.CPU, r.CPULimit, defaultCPU, "cpu", cores(defaultCPU), func(s string) { at(&v.Resources).CPU = s }},
		{"memoryInGB", "memoryInGBLimit", r.MemoryInGB, r.MemoryInGBLimit, defaultMemGB, "memory", gibibytes(defaultMemGB), func(s string) { at(&v.Resources).Memory = s }},
	} {
		asked := n.def
		if n.is != nil {
			asked = *n.is
		}
		if n.most != nil && *n.most > 0 && asked > *n.most {
			d.Refuse(refuse(rollout.ReasonInvalid, group+n.limit, "raise the limit, or lower "+n.key, "%g is less than %s, %g, which is reserved", *n.most, n.key, asked))
		}
		if n.is == nil && c.Deploy.Target() == "kubernetes" {
			n.set(n.value)
			c.added(d, "version.resources."+n.to, n.value, "Azure ML's default; Sluice reserves nothing by itself")
		}
	}
	if n := dc.GPUCores; n != nil {
		switch {
		case *n < 0:
			d.Refuse(refuse(rollout.ReasonInvalid, "gpuCores", "use a whole number of GPUs, or leave it out", "%d is not a number of GPUs", *n))
		case *n == 0:
			c.dropped(d, "gpuCores", "replicas have none unless told")
		default:
			at(&v.Resources).GPU = *n
			c.became(d, "gpuCores", "version.resources.gpu", strconv.Itoa(*n), "")
		}
	}
}

// registered is the way out for an environment that only a workspace knows.
const registered = "an environment that is registered in a workspace cannot be looked up: save it, and give its azureml_environment.json with --environment-file"

// inferenceConfig reads inferenceconfig.json but for its environment.
func (c *converter) inferenceConfig(f *File) *inference {
	var ic inference
	d := c.open(f, Inference, &ic, `begin it with {"entryScript": "score.py"}`)
	c.inference = d
	for _, e := range d.Errors() {
		if e.Refusal.Field == "environment" { // its name alone
			e.Refusal.Hint = registered
			ic.Environment = nil
		}
	}
	c.rows(d, Inference, "", &ic, func(row Field, v any) (string, bool) {
		gpu := row.Path == "enableGpu" || row.Path == "cudaVersion"
		return "the base image decides", gpu && ic.BaseImage != ""
	})
	s := &c.Manifest.Scoring
	switch {
	case !d.Read():
	case ic.EntryScript == "":
		d.Refuse(refuse(rollout.ReasonInvalid, "entryScript", `write "entryScript": "score.py"`, "is missing"))
	default:
		s.EntryScript = ic.EntryScript
		c.became(d, "entryScript", "scoring.entryScript", ic.EntryScript, "")
	}
	if dir := ic.SourceDirectory; dir != "" {
		c.source = path.Clean(dir)
		if c.source == "." {
			c.dropped(d, "sourceDirectory", "it is the project's root")
		} else {
			s.SourceDirectory = c.source
			c.became(d, "sourceDirectory", "scoring.sourceDirectory", c.source, "")
		}
	}
	if ic.Description != "" {
		c.Deploy.Description = ic.Description
		c.became(d, "description", "--description", ic.Description, "")
	}
	return &ic
}

// sortedKeys of a map.
func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }

// short is a JSON value for people.
func short(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		return ""
	}
	return string(b)
}
