// Classify an image with an .mlpackage that deploy/export.py wrote. Not compiled here; see coreml.md.
import CoreML
import Vision

final class CoreMLClassifier {
  private let model: VNCoreMLModel

  /// Xcode compiles a package in the app's target to NAME.mlmodelc; a downloaded one is compiled on the device first.
  init(package: URL, computeUnits: MLComputeUnits = .all) throws {
    let configuration = MLModelConfiguration()
    configuration.computeUnits = computeUnits
    let compiled = package.pathExtension == "mlmodelc" ? package : try MLModel.compileModel(at: package)
    model = try VNCoreMLModel(for: MLModel(contentsOf: compiled, configuration: configuration))
  }

  /// Labels with probabilities, the likeliest first.
  func classify(_ image: CGImage) throws -> [(label: String, probability: Float)] {
    let request = VNCoreMLRequest(model: model)
    request.imageCropAndScaleOption = .centerCrop
    try VNImageRequestHandler(cgImage: image).perform([request])
    let found = request.results as? [VNClassificationObservation] ?? []
    return found.map { ($0.identifier, $0.confidence) }
  }
}
