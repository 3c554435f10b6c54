# With the engine rendering on a thread of its own: its device is refused, one of vkmqa's own works.
extends SceneTree


func _initialize() -> void:
	var attention := VkmqaAttention.new()
	var error := attention.create(RenderingServer.get_rendering_device(), 2, 1, 16, 4)
	print("create: ", attention.get_message())
	var one := PackedFloat32Array()
	one.resize(16)
	one.fill(2.5)
	if attention.create_own_device("", 2, 1, 16, 4) != error:
		error = FAILED
	print("create_own_device: ", attention.get_message())
	var selector := "name:" + RenderingServer.get_video_adapter_name()
	if attention.create_own_device(selector, 2, 1, 16, 4) or attention.append(one, one) or attention.attend(one + one) \
			or attention.wait() or attention.get_output() != one + one:
		print(selector, ": ", attention.get_message())
		error = FAILED
	attention.free()
	quit(error)
