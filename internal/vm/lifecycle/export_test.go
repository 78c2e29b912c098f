package lifecycle

// Closing is closed once the service is being closed.
func (s *Service) Closing() <-chan struct{} { return s.runner.Closing() }

// QueueStart takes the place of one more start, as a request does.
func (s *Service) QueueStart(ownerID string) (leave func(), err error) { return s.power.Queue(ownerID) }

// AnyChanged is that of the service's operations.
func (s *Service) AnyChanged() <-chan struct{} { return s.runner.AnyChanged() }
