package route

import (
	"context"
	"errors"
	"net"
	"slices"
	"time"

	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/logkey"
)

// MaxMissed is how many daily checks in a row a domain may be without its proof.
const MaxMissed = 3

const (
	verifyTimeout = 10 * time.Second // of a look-up in the DNS
	checkInterval = 24 * time.Hour   // between two checks of a domain
	checkTick     = time.Hour        // between two looks for domains to check
	checkBatch    = 100              // domains of one look
)

// ProofName returns the name of the TXT record that proves a domain.
func ProofName(domain string) string { return "_hatch." + domain }

// records returns the TXT records that can prove a domain; none is no error.
// Errors: errs.Unavailable with code dns_unavailable.
func (s *Service) records(ctx context.Context, domain string) ([]string, error) {
	ctx, cancel := context.WithTimeout(ctx, verifyTimeout)
	defer cancel()
	found, err := s.DNS.LookupTXT(ctx, ProofName(domain))
	if failed, ok := errors.AsType[*net.DNSError](err); err != nil && (!ok || !failed.IsNotFound) {
		return nil, errs.New(errs.Unavailable, "dns_unavailable", "cannot look up the TXT records of %s", ProofName(domain)).
			WithHint("try again").WithCause(err)
	}
	return found, nil
}

// Verify looks for the proof of a route's domain in the DNS. From then on the domain
// leads to the VM, also if it has led to another one whose proof is not there any more: a
// domain may have another owner. Errors: errs.Conflict with code domain_unproven or
// domain_taken, or no_domain if the route has none; errs.Unavailable with code
// dns_unavailable.
func (s *Service) Verify(ctx context.Context, scope access.Scope, id string) (Route, error) {
	r, err := s.Store.Route(ctx, scope, id)
	if err != nil || r.VerifiedAt != nil && r.Missed == 0 {
		return r, err
	}
	if r.Domain == "" {
		return r, errs.New(errs.Conflict, "no_domain", "the route has no domain of its own; a subdomain needs no proof")
	}
	found, err := s.records(ctx, r.Domain)
	if err != nil {
		return r, err
	}
	if !slices.Contains(found, r.Proof) {
		return r, errs.New(errs.Conflict, "domain_unproven", "%s has no TXT record with the route's proof", ProofName(r.Domain)).
			WithHint("make a TXT record %s that holds %q, and try again once the DNS has it", ProofName(r.Domain), r.Proof)
	}
	verified, err := s.verified(ctx, scope, r)
	if errs.HasCode(err, "domain_taken") && s.takeOver(ctx, r.Domain, found) {
		return s.verified(ctx, scope, r)
	}
	return verified, err
}

// verified stores that a domain is proved.
func (s *Service) verified(ctx context.Context, scope access.Scope, r Route) (Route, error) {
	at := s.now()
	return s.Store.UpdateRoute(ctx, scope, r.ID, func(r *Route) error {
		r.VerifiedAt, r.CheckedAt, r.Missed = &at, nil, 0
		return nil
	})
}

// takeOver ends another route to a domain if these records of it lack that route's proof.
func (s *Service) takeOver(ctx context.Context, domain string, found []string) bool {
	holder, _, err := s.Store.ServedRoute(ctx, "", domain)
	if err != nil || holder.Granted() || slices.Contains(found, holder.Proof) {
		return false
	}
	return s.Store.RecordCheck(ctx, holder, s.now(), MaxMissed) == nil
}

// Run looks for the proofs of domains again, each once a day, until ctx is done. A DNS
// that does not answer says nothing; one that answers without the proof, several days in a
// row, ends that the domain is served.
func (s *Service) Run(ctx context.Context) {
	tick := time.NewTicker(checkTick)
	defer tick.Stop()
	for {
		if err := s.checkDomains(ctx); err != nil && ctx.Err() == nil {
			s.Log.Warn("cannot look for domains to check", logkey.Error, err)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

func (s *Service) checkDomains(ctx context.Context) error {
	due, err := s.Store.DomainsToCheck(ctx, s.now().Add(-checkInterval), checkBatch)
	if err != nil || len(due) == 0 {
		return err
	}
	if err := s.Store.RecordTries(ctx, due, s.now()); err != nil { // else those without an answer would come first always
		return err
	}
	for _, r := range due {
		found, err := s.records(ctx, r.Domain)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			s.Log.Warn("cannot prove a domain again", logkey.Domain, r.Domain, logkey.Error, err)
			continue
		}
		missed := r.Missed + 1
		if slices.Contains(found, r.Proof) {
			missed = 0
		}
		if err := s.Store.RecordCheck(ctx, r, s.now(), missed); err != nil {
			return err
		}
	}
	return nil
}

// now returns the time as it is stored.
func (s *Service) now() time.Time { return s.Now().UTC().Truncate(time.Microsecond) }
