# Without a rendering device: the errors, the remedy that they name, and the error as exit code.
extends SceneTree


func _initialize() -> void:
	var attention := VkmqaAttention.new()
	var error := attention.create(RenderingServer.get_rendering_device(), 2, 1, 16, 4)
	print("create: ", attention.get_message())
	if attention.create_own_device("", 2, 1, 16, 4) != error:
		error = FAILED
	print("create_own_device: ", attention.get_message())
	var one := PackedFloat32Array()
	for i in 16:
		one.append(i / 4.0)
	if attention.create_own_device("auto", 2, 1, 16, 4) or attention.append(one, one) or attention.attend(one + one) \
			or attention.wait() or attention.get_output() != one + one: # of one token the output is its value
		print("create_own_device(\"auto\"): ", attention.get_message())
		error = FAILED
	attention.free()
	quit(error)
