"""Many machines: the service on Ray Serve, captions by Ray Data, and which replica a request belongs to.

Ray starts, watches, scales and replaces replicas; ours is the choice among them. ``routing`` is that choice, pure;
``key`` says what a request is about; ``front`` takes HTTP and hands it to a replica; ``replica`` answers it there;
``router`` and ``ray_serve`` tie these to Ray Serve, and ``ray_data`` captions by Ray Data. Only the last three import
Ray, which is an extra, so importing this package needs none.
"""
