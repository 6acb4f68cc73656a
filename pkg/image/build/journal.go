package build

import (
	"bytes"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/moby/buildkit/client"
	"github.com/opencontainers/go-digest"
)

const (
	// keptLines of a step's output are quoted when it fails.
	keptLines = 20
	// keptErrors of them are the last of standard error, however much comes after them on standard output: many programs
	// write what they had kept of that only as they end.
	keptErrors = 10
	// stderr is BuildKit's number of that stream.
	stderr = 2
	// maxLine bounds a quoted line, in bytes.
	maxLine = 400
	// sayEvery is how often a step that goes on says so.
	sayEvery = 10 * time.Second
)

// Names that BuildKit gives to steps of its own.
const (
	stepInternal    = "[internal] "
	stepMetadata    = "[internal] load metadata for "
	stepSyntax      = "resolve image config for "
	stepExport      = "exporting to image"
	stepCacheImport = "importing cache manifest from "
	stepCacheExport = "exporting cache"
)

// journal writes a build's log, and knows its steps for progress and errors. BuildKit's own display is one for
// terminals; it keeps no step's output for an error to quote.
type journal struct {
	log      io.Writer
	progress func(format string, args ...any)
	began    time.Time
	steps    map[digest.Digest]*step
	order    []*step
	// parts are what steps do beside each other, such as pushing one layer each.
	parts map[string]*part
}

type step struct {
	number   int
	name     string
	started  time.Time
	running  bool
	finished bool
	err      string
	// part is output since the last end of a line, by stream.
	part map[int][]byte
	tail []outputLine
}

// outputLine is a line of a step's output, as it is quoted.
type outputLine struct {
	stream int
	text   string
}

// quote is what the step's output ends with.
func (s *step) quote() []string {
	var out []string
	for _, l := range s.tail {
		out = append(out, l.text)
	}
	return out
}

// keep a line of output, and forget another one if there are too many.
func (s *step) keep(l outputLine) {
	s.tail = append(s.tail, l)
	if len(s.tail) <= keptLines {
		return
	}
	errs := 0
	for _, l := range s.tail {
		if l.stream == stderr {
			errs++
		}
	}
	oldest := 0
	if errs <= keptErrors {
		oldest = slices.IndexFunc(s.tail, func(l outputLine) bool { return l.stream != stderr })
	}
	s.tail = slices.Delete(s.tail, oldest, oldest+1)
}

// part is one thing that a step does. The push is only that: BuildKit counts its step as done before.
type part struct {
	name     string
	of       *step
	finished bool
	told     time.Time
	// so many bytes of a total, if that is known.
	current, total int64
}

func newJournal(log io.Writer, progress func(format string, args ...any)) *journal {
	return &journal{log: log, progress: progress, began: time.Now(), steps: map[digest.Digest]*step{}, parts: map[string]*part{}}
}

// keep takes notes until the channel is closed.
func (j *journal) keep(status <-chan *client.SolveStatus) {
	tick := time.NewTicker(sayEvery)
	defer tick.Stop()
	for {
		select {
		case s, ok := <-status:
			if !ok {
				j.flush()
				return
			}
			j.note(s)
		case now := <-tick.C:
			j.tick(now)
		}
	}
}

// tick tells of what takes long.
func (j *journal) tick(now time.Time) {
	for _, s := range j.order {
		if s.running && !s.finished && now.Sub(s.started) >= sayEvery {
			j.progress("%s: running for %.0f s", s.name, now.Sub(s.started).Seconds())
		}
	}
	for _, id := range slices.Sorted(maps.Keys(j.parts)) {
		p := j.parts[id]
		if p.finished || now.Sub(p.told) < sayEvery {
			continue
		}
		p.told = now
		if p.total > 0 {
			j.progress("%s: %s: %d of %d MB", p.of.name, p.name, p.current>>20, p.total>>20)
		} else if p.of.finished {
			j.progress("%s: %s", p.of.name, p.name)
		}
	}
}

func (j *journal) note(s *client.SolveStatus) {
	for _, v := range s.Vertexes {
		j.vertex(v)
	}
	for _, st := range s.Statuses {
		j.part(st)
	}
	for _, l := range s.Logs {
		if at := j.steps[l.Vertex]; at != nil {
			j.output(at, l.Stream, l.Data)
		}
	}
	for _, w := range s.Warnings {
		number := 0
		if at := j.steps[w.Vertex]; at != nil {
			number = at.number
		}
		j.write(number, "WARNING: "+string(w.Short))
	}
}

func (j *journal) part(s *client.VertexStatus) {
	of := j.steps[s.Vertex]
	if of == nil {
		return
	}
	id := string(s.Vertex) + " " + s.ID
	p := j.parts[id]
	if p == nil {
		p = &part{name: s.ID, of: of, told: time.Now()}
		j.parts[id] = p
		j.write(of.number, s.ID)
	}
	p.current, p.total = s.Current, s.Total
	if s.Completed == nil || p.finished {
		return
	}
	p.finished = true
	took := time.Duration(0)
	if s.Started != nil {
		took = s.Completed.Sub(*s.Started)
	}
	j.write(of.number, fmt.Sprintf("%s: done, %.1f s", s.ID, took.Seconds()))
}

func (j *journal) vertex(v *client.Vertex) {
	s := j.steps[v.Digest]
	if s == nil {
		s = &step{number: len(j.order) + 1, name: v.Name, part: map[int][]byte{}}
		j.steps[v.Digest] = s
		j.order = append(j.order, s)
	}
	if v.Started != nil && !s.running {
		s.running, s.started = true, *v.Started
		j.write(s.number, s.name)
	}
	if v.Completed == nil || s.finished {
		return
	}
	s.finished, s.err = true, v.Error
	j.flushStep(s)
	took := time.Duration(0)
	if v.Started != nil {
		took = v.Completed.Sub(*v.Started)
	}
	how := fmt.Sprintf("%.1f s", took.Seconds())
	switch {
	case v.Error != "" && strings.HasPrefix(s.name, stepCacheImport):
		how = "there is none yet"
		j.write(s.number, "not there: "+v.Error)
	case canceled(v.Error):
		j.write(s.number, "CANCELED after "+how)
		return // another step's failure says why
	case v.Error != "":
		j.write(s.number, "ERROR after "+how+": "+v.Error)
		how = "failed after " + how
	case v.Cached:
		how = "cached"
		j.write(s.number, "CACHED")
	default:
		j.write(s.number, "DONE "+how)
	}
	// What BuildKit does for itself is over in a moment, and of no interest if it works.
	if v.Error != "" || !strings.HasPrefix(s.name, stepInternal) {
		j.progress("%s: %s", s.name, how)
	}
}

func canceled(text string) bool { return strings.Contains(text, "context canceled") }

func (j *journal) output(s *step, stream int, data []byte) {
	all := append(s.part[stream], data...)
	for {
		line, rest, ok := bytes.Cut(all, []byte("\n"))
		if !ok {
			break
		}
		j.line(s, stream, string(line))
		all = rest
	}
	s.part[stream] = slices.Clone(all)
}

func (j *journal) line(s *step, stream int, line string) {
	line = strings.TrimSuffix(line, "\r")
	j.write(s.number, line)
	// What a terminal would show at last.
	line = line[strings.LastIndex(line, "\r")+1:]
	line = strings.Map(func(r rune) rune {
		if r == '\t' {
			return ' '
		}
		if !unicode.IsPrint(r) {
			return -1
		}
		return r
	}, line)
	if strings.TrimSpace(line) == "" {
		return
	}
	if len(line) > maxLine {
		line = strings.ToValidUTF8(line[:maxLine], "") + "…"
	}
	s.keep(outputLine{stream, line})
}

func (j *journal) flush() {
	for _, s := range j.order {
		j.flushStep(s)
	}
}

func (j *journal) flushStep(s *step) {
	for stream, part := range s.part {
		if len(part) > 0 {
			j.line(s, stream, string(part))
		}
		delete(s.part, stream)
	}
}

// write adds a line to the log: when, which step, what. An error is not one of the build.
func (j *journal) write(number int, text string) {
	_, _ = fmt.Fprintf(j.log, "%8.3f #%d %s\n", time.Since(j.began).Seconds(), number, text)
}

// begin and end are for a step that is not BuildKit's.
func (j *journal) begin(name string) *step {
	s := &step{number: len(j.order) + 1, name: name, started: time.Now(), part: map[int][]byte{}}
	j.order = append(j.order, s)
	j.write(s.number, name)
	return s
}

func (j *journal) end(s *step, err error) {
	s.finished = true
	how := fmt.Sprintf("%.1f s", time.Since(s.started).Seconds())
	if err != nil {
		s.err = err.Error()
		j.write(s.number, "ERROR after "+how+": "+s.err)
		how = "failed after " + how
	} else {
		j.write(s.number, "DONE "+how)
	}
	j.progress("%s: %s", s.name, how)
}

// failed is the step with a digest, or else the last one that failed by itself and whose failure ends
// a build; nil if none did.
func (j *journal) failed(d digest.Digest) *step {
	if s := j.steps[d]; s != nil {
		return s
	}
	for _, s := range slices.Backward(j.order) {
		if s.err != "" && !canceled(s.err) && !strings.HasPrefix(s.name, stepCacheImport) && !strings.HasPrefix(s.name, stepCacheExport) {
			return s
		}
	}
	return nil
}
