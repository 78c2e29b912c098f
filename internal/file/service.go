package file

// Service is what can be done with files in guests.
type Service struct {
	guests Guests
}

// New returns a service that works in guests.
func New(guests Guests) *Service { return &Service{guests: guests} }
