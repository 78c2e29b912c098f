package client

import (
	"context"
	"iter"
	"net/url"
	"strconv"
	"time"

	"github.com/hatchvm/hatch/api"
)

// AuditOptions say which audit records to return. Zero fields do not filter.
type AuditOptions struct {
	User, Key    string // id or name
	Operation    string
	Object       string // id
	Outcome      string // ok, refused or failed
	Since, Until time.Time
	PageSize     int // records per request, 1 to 1000; 0 for the server's default
}

// ListAudit yields audit records, newest first, one page per request, and ends at the
// first error.
func (c *Client) ListAudit(ctx context.Context, opts AuditOptions) iter.Seq2[api.AuditRecord, error] {
	query := url.Values{}
	setString(query, "user", opts.User)
	setString(query, "key", opts.Key)
	setString(query, "operation", opts.Operation)
	setString(query, "object", opts.Object)
	setString(query, "outcome", opts.Outcome)
	for name, at := range map[string]time.Time{"since": opts.Since, "until": opts.Until} {
		if !at.IsZero() {
			query.Set(name, at.UTC().Format(time.RFC3339Nano))
		}
	}
	if opts.PageSize > 0 {
		query.Set("limit", strconv.Itoa(opts.PageSize))
	}
	return pages[api.AuditRecord](ctx, c, "/audit", query)
}
