package httpapi

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/audit"
	"github.com/hatchvm/hatch/internal/errs"
)

const auditText = "Returns who did what, newest first: one record for each request that changes something, runs a command, reads a file, or opens a console or a tunnel, also for refused ones, and for each connection to a port of a VM. " +
	"Admins see all records, other users their own, and those of their VMs' ports. The Link header has the next page. " +
	"With Accept: application/x-ndjson the response has all records that match, one per line."

// ndjsonType is the media type of JSON values, one per line.
const ndjsonType = "application/x-ndjson"

// Audit keeps the audit log. [audit.Service] implements it.
type Audit interface {
	// Add and AddBounded do not wait.
	Add(r audit.Record)
	AddBounded(r audit.Record)
	Records(ctx context.Context, f audit.Filter) ([]audit.Record, error)
}

type auditHandlers struct {
	*door
	audit Audit
}

func (h *auditHandlers) routes() []route {
	return []route{
		{get, "/audit", access.Read(access.Audit), 200, "list-audit", "List audit records", auditText, as("200", "application/json", arrayOf("AuditRecord"), orLines(on(h.list)))},
	}
}

// orLines describes a JSON value per line as an alternative.
func orLines(add register) register {
	return func(d *door, described huma.API, op huma.Operation) {
		schema := text
		op.Responses["200"].Content[ndjsonType] = &huma.MediaType{Schema: &schema}
		add(d, described, op)
	}
}

type listAuditInput struct {
	User      string `query:"user" maxLength:"128" doc:"Only records of what the user with this ID or name did."`
	Key       string `query:"key" maxLength:"128" doc:"Only records of what was done with the API key with this ID or name."`
	Operation string `query:"operation" maxLength:"64" doc:"Only records of this operation, such as create-vm."`
	Object    string `query:"object" maxLength:"128" doc:"Only records about the object of this ID, and the one of its creation."`
	Outcome   string `query:"outcome" enum:"ok,refused,failed" doc:"Only records with this outcome."`
	Since     string `query:"since" maxLength:"64" doc:"Only records of this time or later: an RFC 3339 time, or how long ago, such as 90m."`
	Until     string `query:"until" maxLength:"64" doc:"Only records from before this time, given as since is."`
	Limit     int    `query:"limit" minimum:"1" maximum:"1000" default:"100" doc:"Records on a page."`
	After     string `query:"after" maxLength:"20" doc:"Only records after this one in the list; the Link header has it."`
	Accept    string `header:"Accept" doc:"application/x-ndjson for all records that match, one per line."`
}

func (in *listAuditInput) filter(ctx context.Context) (f audit.Filter, err error) {
	f = audit.Filter{
		Scope: scope(ctx), User: in.User, Key: in.Key, Operation: in.Operation, Object: in.Object, Outcome: audit.Outcome(in.Outcome), Limit: in.Limit,
	}
	if callerOf(ctx).Role == access.RoleAdmin {
		f.Scope = access.Everyone
	}
	if f.Since, err = parseSince(in.Since); err != nil {
		return f, err
	}
	if f.Until, err = parseSince(in.Until); err != nil {
		return f, errs.InvalidField("until", "%q is neither an RFC 3339 time nor how long ago, such as 90m or 24h", errs.Brief(in.Until))
	}
	if in.After != "" {
		if f.Before, err = strconv.ParseInt(in.After, 10, 64); err != nil || f.Before <= 0 {
			return f, errs.InvalidField("after", "is not a valid cursor").WithHint("follow the Link header of the previous page, or leave after out")
		}
	}
	return f, nil
}

func (h *auditHandlers) list(ctx context.Context, in *listAuditInput) (*huma.StreamResponse, error) {
	f, err := in.filter(ctx)
	if err != nil {
		return nil, err
	}
	if strings.Contains(in.Accept, ndjsonType) {
		return h.export(f), nil
	}
	page, err := h.audit.Records(ctx, f)
	if err != nil {
		return nil, err
	}
	shown := make([]api.AuditRecord, len(page))
	for i, r := range page {
		shown[i] = shownRecord(r)
	}
	text, err := json.Marshal(shown)
	if err != nil {
		return nil, fmt.Errorf("cannot encode audit records: %w", err)
	}
	return &huma.StreamResponse{Body: func(hc huma.Context) {
		_, w := humago.Unwrap(hc)
		w.Header().Set("Content-Type", "application/json")
		if len(page) == f.Limit {
			w.Header().Set("Link", "</audit?"+in.nextPage(page[len(page)-1].Seq).Encode()+`>; rel="next"`)
		}
		_, _ = w.Write(append(text, '\n')) // an error means that the client has disconnected
	}}, nil
}

func (in *listAuditInput) nextPage(after int64) url.Values {
	v := url.Values{"limit": {strconv.Itoa(in.Limit)}, "after": {strconv.FormatInt(after, 10)}}
	for name, value := range map[string]string{
		"user": in.User, "key": in.Key, "operation": in.Operation, "object": in.Object, "outcome": in.Outcome, "since": in.Since, "until": in.Until,
	} {
		if value != "" {
			v.Set(name, value)
		}
	}
	return v
}

// exportPage is how many records an export reads at a time.
const exportPage = 1000

// export answers with all records that match, one per line.
func (h *auditHandlers) export(f audit.Filter) *huma.StreamResponse {
	f.Limit = exportPage
	return &huma.StreamResponse{Body: func(hc huma.Context) {
		r, w := humago.Unwrap(hc)
		out := &textWriter{to: w, kind: ndjsonType}
		h.endStream(w, r, out, h.writeLines(r.Context(), f, out))
	}}
}

func (h *auditHandlers) writeLines(ctx context.Context, f audit.Filter, w io.Writer) error {
	for {
		page, err := h.audit.Records(ctx, f)
		if err != nil {
			return err
		}
		lines := json.NewEncoder(w)
		for _, r := range page {
			if err := lines.Encode(shownRecord(r)); err != nil {
				return err
			}
		}
		if len(page) < f.Limit {
			return nil
		}
		f.Before = page[len(page)-1].Seq
	}
}

func shownRecord(r audit.Record) api.AuditRecord {
	return api.AuditRecord{
		ID: "aud_" + strconv.FormatInt(r.Seq, 10), At: utc(r.At), UserID: r.UserID, UserName: r.UserName, KeyID: r.KeyID, KeyName: r.KeyName, Address: r.Address,
		Operation: r.Operation, Noun: r.Noun, Object: r.Object, Made: r.Made, Outcome: string(r.Outcome), Code: r.Code, RequestID: r.RequestID,
		TookMS: r.Took.Milliseconds(), Bytes: r.Bytes, Count: r.Count,
	}
}

// record adds a record of each request of a caller that is worth one, once it has ended.
func (d *door) record(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		route, known := d.served[callerOf(r.Context()).pattern]
		if !known || !route.recorded() || callerOf(r.Context()).OwnerID == "" {
			next.ServeHTTP(w, r)
			return
		}
		began, seen := time.Now(), &writer{ResponseWriter: w, control: http.NewResponseController(w)}
		defer func() { // also of a panic
			d.audit.Add(recordOf(r, route, seen, time.Since(began)))
		}()
		next.ServeHTTP(seen, r)
	})
}

// recorded reports whether requests to a route are recorded: those that change
// something, those that need the right to, as a console does, and those that read files.
func (r route) recorded() bool {
	opens := r.needs.Write && r.needs != access.Admin
	return r.method != get || opens || r.id == "read-file" || r.id == "read-tree"
}

// recordOf describes a request that has ended. It reads nothing of it but the path.
func recordOf(r *http.Request, route route, seen *writer, took time.Duration) audit.Record {
	c := callerOf(r.Context())
	record := audit.By(c.Principal, c.address)
	record.Operation, record.Outcome, record.RequestID, record.Took = route.id, audit.OK, c.requestID, took
	record.Noun, record.Object, record.Made = objectsOf(route.path, r.URL.EscapedPath(), seen.Header().Get("Location"))
	if c.problem != nil && seen.status >= http.StatusBadRequest {
		record.Outcome, record.Code = audit.Refused, c.problem.Code
	}
	if seen.status >= http.StatusInternalServerError || seen.status == 0 { // 0: a panic
		record.Outcome = audit.Failed
	}
	return record
}

// objectsOf returns the kind and the id of what a request was about, the object in its
// path, and of another one that it has made. Without the first, it was about the second.
func objectsOf(pattern, path, location string) (noun, id, made string) {
	made = location[strings.LastIndexByte(location, '/')+1:]
	collection, rest, _ := strings.Cut(strings.TrimPrefix(pattern, "/"), "/")
	noun = strings.TrimSuffix(collection, "s")
	if strings.HasPrefix(rest, "{id}") {
		_, after, _ := strings.Cut(strings.TrimPrefix(path, "/"), "/")
		id, _, _ = strings.Cut(after, "/")
	} else {
		id, made = made, ""
	}
	if !saneRequestID.MatchString(id) || access.IsSecret(id) { // neither an id nor a name
		id = ""
	}
	if made == id { // a Location of the object itself
		made = ""
	}
	return noun, id, made
}

// recordRefusedKey records that a caller presented no valid key.
func (d *door) recordRefusedKey(r *http.Request) {
	c := callerOf(r.Context())
	record := audit.By(c.Principal, c.address)
	record.Operation, record.Outcome = audit.Authenticate, audit.Refused
	if c.problem != nil {
		record.Code = c.problem.Code
	}
	d.audit.AddBounded(record)
}
